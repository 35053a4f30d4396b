"""Downloads images over HTTP: limits the rate, tries again, and does not trust the server."""

import email.message
import http.client
import threading
import time
import urllib.error
import urllib.request

from mmesid_jax.features.image_files import image_suffix, is_url

CHUNK_BYTES = 1 << 16
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 1.0, 60.0  # between attempts; doubles each time
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class DownloadFailed(Exception):
  """An image could not be downloaded; the message says why.

  reached: whether a server answered. retry: whether a later attempt may succeed. wait: seconds that
  the server asked for before the next attempt.
  """

  def __init__(self, reason: str, *, reached: bool = True, retry: bool = False, wait: float = 0):
    super().__init__(reason)
    self.reached, self.retry, self.wait = reached, retry, wait


class DownloadStopped(Exception):
  """`Downloader.stop` was called while this download waited."""


class Downloader:
  """Downloads images from any number of threads, at most `per_second` requests in total.

  Args:
    per_second: the limit on requests per second, over all threads.
    retries: how often a request is repeated when the connection fails, the body is cut short or the
      server says that it is busy.
    timeout: seconds that a server may be silent, and seconds that one body may take.
    max_bytes: the largest body that is accepted.
  """

  def __init__(self, *, per_second: float, retries: int, timeout: float, max_bytes: int):
    self._interval, self._retries, self._timeout = 1 / per_second, retries, timeout
    self._max_bytes = max_bytes
    self._stop = threading.Event()
    self._lock, self._next_request = threading.Lock(), time.monotonic()
    self._opener = urllib.request.OpenerDirector()  # HTTP and HTTPS only, also after a redirect
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
    """Ends all waiting; downloads in progress raise DownloadStopped before their next request."""
    self._stop.set()

  def __call__(self, url: str) -> bytes:
    """Returns the bytes of the image. Raises DownloadFailed and DownloadStopped."""
    if not is_url(url):
      raise DownloadFailed("not an http or https url")
    for attempt in range(self._retries + 1):
      self._wait(self._reserve_request())
      try:
        return self._request(url)
      except DownloadFailed as failure:
        if not failure.retry or attempt == self._retries:
          raise
        wait = max(failure.wait, FIRST_WAIT_SECONDS * 2**attempt)
        self._wait(min(wait, MAX_WAIT_SECONDS))
    raise AssertionError("unreachable")

  def _reserve_request(self) -> float:
    """Reserves the next free time for a request; returns the seconds until then."""
    with self._lock:
      now = time.monotonic()
      start = max(now, self._next_request)
      self._next_request = start + self._interval
    return start - now

  def _wait(self, seconds: float) -> None:
    if self._stop.wait(seconds):
      raise DownloadStopped

  def _request(self, url: str) -> bytes:
    headers = {"User-Agent": "mmesid_jax", "Accept": "image/*"}
    try:
      request = urllib.request.Request(url, headers=headers)
      with self._opener.open(request, timeout=self._timeout) as response:
        return self._read_image(response)
    except urllib.error.HTTPError as error:
      error.close()
      retry = error.code in RETRY_STATUSES
      wait = _retry_after_seconds(error.headers)
      raise DownloadFailed(f"HTTP {error.code}", retry=retry, wait=wait) from None
    except (ValueError, http.client.InvalidURL) as error:
      raise DownloadFailed(f"no usable url ({error})") from None
    except (OSError, http.client.HTTPException) as error:  # includes URLError and time-outs
      reason = str(getattr(error, "reason", None) or error) or type(error).__name__
      raise DownloadFailed(reason, reached=False, retry=True) from None

  def _read_image(self, response: http.client.HTTPResponse) -> bytes:
    deadline = time.monotonic() + self._timeout
    length = response.length or 0  # 0: the server does not say
    if length > self._max_bytes:
      raise DownloadFailed(f"{length:,} bytes, more than {self._max_bytes:,}")
    body = bytearray()
    while part := response.read1(CHUNK_BYTES):
      body += part
      if len(body) > self._max_bytes:
        raise DownloadFailed(f"more than {self._max_bytes:,} bytes")
      if time.monotonic() > deadline:
        raise DownloadFailed(f"not complete after {self._timeout:g} seconds", retry=True)
    if len(body) < length:
      raise DownloadFailed(f"cut short, {len(body):,} of {length:,} bytes", retry=True)
    if image_suffix(body[:16]) is None:
      raise DownloadFailed(f"not an image ({response.headers.get_content_type()})")
    return bytes(body)


def _retry_after_seconds(headers: email.message.Message) -> float:
  """Returns the seconds of a Retry-After header; 0 when there is none or it is a date."""
  value = headers.get("Retry-After") or ""
  return float(value) if value.isascii() and value.isdigit() else 0.0
