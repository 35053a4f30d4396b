"""Images over HTTP: patient with servers, careful of what they send."""

import email.message
import http.client
import threading
import time
import urllib.error
import urllib.request

from mmesid_jax.features.image_files import image_suffix, is_url

CHUNK_BYTES = 1 << 16
BACKOFF_SECONDS, MAX_WAIT_SECONDS = 1.0, 60.0  # between tries: doubled every time, up to the latter
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class DownloadFailed(Exception):
  """An image that could not be had, and why; `reached` says whether a server answered at all."""

  def __init__(self, reason: str, *, reached: bool = True, again: bool = False, wait: float = 0):
    super().__init__(reason)
    self.reached, self.again, self.wait = reached, again, wait


class DownloadStopped(Exception):
  """`stop` was called meanwhile."""


class Downloader:
  """Downloads images, from any number of threads, never more than `per_second` requests together.

  retries: how often a request is sent again when the connection fails, the body is cut short or the
  server says that it is busy. timeout: seconds that a server may be silent, and that a body may
  take. max_bytes: of a body.
  """

  def __init__(self, *, per_second: float, retries: int, timeout: float, max_bytes: int):
    self._interval, self._retries, self._timeout = 1 / per_second, retries, timeout
    self._max_bytes = max_bytes
    self._stop = threading.Event()
    self._lock, self._next = threading.Lock(), time.monotonic()
    self._opener = urllib.request.OpenerDirector()  # speaks HTTP only, after redirects too
    for handler in (
      urllib.request.ProxyHandler(),
      urllib.request.HTTPHandler(),
      urllib.request.HTTPSHandler(),
      urllib.request.HTTPRedirectHandler(),
      urllib.request.HTTPDefaultErrorHandler(),
      urllib.request.HTTPErrorProcessor(),
      urllib.request.UnknownHandler(),
    ):
      self._opener.add_handler(handler)

  def stop(self) -> None:
    """Ends all waiting; what is under way raises Stopped before its next request."""
    self._stop.set()

  def __call__(self, url: str) -> bytes:
    """The image. Raises Failed, and Stopped."""
    if not is_url(url):
      raise DownloadFailed("not an http or https url")
    for attempt in range(self._retries + 1):
      self._wait(self._turn())
      try:
        return self._once(url)
      except DownloadFailed as failed:
        if not failed.again or attempt == self._retries:
          raise
        wait = max(failed.wait, BACKOFF_SECONDS * 2**attempt)
        self._wait(min(wait, MAX_WAIT_SECONDS))
    raise AssertionError("unreachable")

  def _turn(self) -> float:
    """Seconds until this thread may send."""
    with self._lock:
      now = time.monotonic()
      at = max(now, self._next)
      self._next = at + self._interval
    return at - now

  def _wait(self, seconds: float) -> None:
    if self._stop.wait(seconds):
      raise DownloadStopped

  def _once(self, url: str) -> bytes:
    agent = {"User-Agent": "mmesid_jax", "Accept": "image/*"}
    try:
      request = urllib.request.Request(url, headers=agent)
      with self._opener.open(request, timeout=self._timeout) as response:
        return self._image(response)
    except urllib.error.HTTPError as error:
      error.close()
      again = error.code in RETRY_STATUSES
      raise DownloadFailed(
        f"HTTP {error.code}", again=again, wait=_retry_after_seconds(error.headers)
      ) from None
    except (ValueError, http.client.InvalidURL) as error:
      raise DownloadFailed(f"no usable url ({error})") from None
    except (OSError, http.client.HTTPException) as error:  # URLError too: cut off, late, no host
      reason = str(getattr(error, "reason", None) or error) or type(error).__name__
      raise DownloadFailed(reason, reached=False, again=True) from None

  def _image(self, response: http.client.HTTPResponse) -> bytes:
    end = time.monotonic() + self._timeout
    length = response.length or 0  # 0: the server does not say
    if length > self._max_bytes:
      raise DownloadFailed(f"{length:,} bytes, more than {self._max_bytes:,}")
    body = bytearray()
    while part := response.read1(CHUNK_BYTES):
      body += part
      if len(body) > self._max_bytes:
        raise DownloadFailed(f"more than {self._max_bytes:,} bytes")
      if time.monotonic() > end:
        raise DownloadFailed(f"not whole after {self._timeout:g} seconds", again=True)
    if len(body) < length:
      raise DownloadFailed(f"cut short, {len(body):,} of {length:,} bytes", again=True)
    if image_suffix(body[:16]) is None:
      raise DownloadFailed(f"not an image ({response.headers.get_content_type()})")
    return bytes(body)


def _retry_after_seconds(headers: email.message.Message) -> float:
  """Seconds of a Retry-After; 0 where there is none, or a date."""
  value = headers.get("Retry-After") or ""
  return float(value) if value.isascii() and value.isdigit() else 0.0
