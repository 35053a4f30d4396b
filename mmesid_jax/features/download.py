"""Downloads images over HTTP: limits rate, time and size, and trusts neither urls nor servers."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import aiohttp
import aiohttp.abc

from mmesid_jax.features.image_files import image_suffix, is_url

FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 1.0, 60.0  # between attempts; doubles each time
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an IPv4 address
UNICAST = ipaddress.ip_network("2000::/3")  # all that is given out of IPv6
# Which Python's table does not know yet: documentation, and a service of Azure for its machines.
NOT_PUBLIC = [ipaddress.ip_network(x) for x in ("3fff::/20", "168.63.129.16/32")]


class DownloadFailed(Exception):
  """An image could not be downloaded; the message says why.

  reached: whether a server answered. retry: whether a later attempt may succeed. wait: seconds that
  the server asked for before the next attempt.
  """

  def __init__(self, reason: str, *, reached: bool = True, retry: bool = False, wait: float = 0):
    super().__init__(reason)
    self.reached, self.retry, self.wait = reached, retry, wait


class PrivateAddress(OSError):
  """A connection was to go to an address that is not public."""


class Downloader:
  """Downloads images in any number of tasks, at most `per_second` requests in total.

  Use it as an async context manager, in a running event loop. A proxy that the environment names
  (`http_proxy`, `https_proxy`, `no_proxy`) is used; it then looks up the names of hosts.

  Args:
    per_second: the limit on requests per second, over all tasks.
    retries: how often a request is repeated when the connection fails, the body is cut short or the
      server says that it is busy.
    timeout: seconds that a request may take in all, from the name of the host to the last byte.
    max_bytes: the largest body that is accepted.
    allow_private: also connects to loopback, link-local and private addresses. Without it, whoever
      wrote the urls could have this machine ask servers that only it can reach.
  """

  def __init__(
    self,
    *,
    per_second: float,
    retries: int,
    timeout: float,
    max_bytes: int,
    allow_private: bool = False,
  ):
    self._interval, self._retries, self._timeout = 1 / per_second, retries, timeout
    self._max_bytes, self._allow_private = max_bytes, allow_private
    self._next_request = 0.0

  async def __aenter__(self) -> "Downloader":
    self._session = aiohttp.ClientSession(
      connector=aiohttp.TCPConnector(
        resolver=_DaemonResolver(),
        # every connection passes here, that of a redirect too, with the address it will have
        socket_factory=None if self._allow_private else _open_public_socket,
      ),
      cookie_jar=aiohttp.DummyCookieJar(),
      headers={"User-Agent": "mmesid_jax", "Accept": "image/*", "Accept-Encoding": "identity"},
      timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
      auto_decompress=False,
    )
    return self

  async def __aexit__(self, *error: object) -> None:
    await self._session.close()

  async def __call__(self, url: str) -> bytes:
    """Returns the bytes of the image. Raises DownloadFailed."""
    if not is_url(url):
      raise DownloadFailed("not an http or https url")
    for attempt in range(self._retries + 1):
      await asyncio.sleep(self._reserve_request(asyncio.get_running_loop().time()))
      try:
        return await self._request(url)
      except DownloadFailed as failure:
        if not failure.retry or attempt == self._retries:
          raise
        wait = max(failure.wait, FIRST_WAIT_SECONDS * 2**attempt)
        await asyncio.sleep(min(wait, MAX_WAIT_SECONDS))
    raise AssertionError("unreachable")

  def _reserve_request(self, now: float) -> float:
    """Reserves the next free time for a request; returns the seconds until then."""
    start = max(now, self._next_request)
    self._next_request = start + self._interval
    return start - now

  async def _request(self, url: str) -> bytes:
    reached = False
    try:
      async with asyncio.timeout(self._timeout):
        async with self._session.get(url, proxy=_proxy(url)) as response:
          reached = True
          return await self._read_image(response)
    except TimeoutError:
      reason = f"not complete after {self._timeout:g} seconds"
      raise DownloadFailed(reason, reached=reached, retry=True) from None
    except aiohttp.NonHttpUrlRedirectClientError:
      raise DownloadFailed("redirected to something other than http or https") from None
    except aiohttp.TooManyRedirects:
      raise DownloadFailed("redirected too often") from None
    except (aiohttp.ClientError, OSError) as error:
      if isinstance(error, ValueError):
        raise DownloadFailed(f"no usable url ({error})") from None
      cause = getattr(error, "os_error", error)
      is_private = isinstance(cause, PrivateAddress)
      reason = " ".join(_reason(cause).split()) or type(error).__name__
      raise DownloadFailed(reason, reached=False, retry=not is_private) from None
    except ValueError as error:
      raise DownloadFailed(f"no usable url ({error})") from None

  async def _read_image(self, response: aiohttp.ClientResponse) -> bytes:
    if not 200 <= response.status < 300:
      raise DownloadFailed(
        f"HTTP {response.status}",
        retry=response.status in RETRY_STATUSES,
        wait=_retry_after_seconds(response.headers),
      )
    length = response.content_length or 0  # 0: the server does not say
    if length > self._max_bytes:
      raise DownloadFailed(f"{length:,} bytes, more than {self._max_bytes:,}")
    body = bytearray()
    try:
      async for part in response.content.iter_any():
        body += part
        if len(body) > self._max_bytes:
          raise DownloadFailed(f"more than {self._max_bytes:,} bytes")
    except aiohttp.ClientPayloadError:
      of = f" of {length:,}" if length else ""
      raise DownloadFailed(f"cut short, {len(body):,}{of} bytes", retry=True) from None
    if image_suffix(body[:16]) is None:
      raise DownloadFailed(f"not an image ({response.content_type})")
    return bytes(body)


def is_public(address: str) -> bool:
  """Returns whether a numeric IP address belongs to the public internet.

  An IPv6 address that holds one of IPv4, as translators and tunnels write it, is as public as that.
  """
  ip = ipaddress.ip_address(address)
  if ip.version == 6:
    inner = ip.ipv4_mapped or ip.sixtofour
    if inner is None and ip in NAT64:
      inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner is None and ip not in UNICAST:
      return False
    ip = inner or ip
  return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


def _open_public_socket(address: tuple[Any, ...]) -> socket.socket:
  """Returns a socket for a connection to this address. Raises PrivateAddress."""
  family, kind, protocol, _, (host, *_) = address
  if not is_public(host):
    raise PrivateAddress(f"{host} is not a public address; --allow_private permits it")
  return socket.socket(family, kind, protocol)


class _DaemonResolver(aiohttp.abc.AbstractResolver):
  """Looks up names in threads that nothing waits for: the system cannot stop a look-up."""

  async def resolve(
    self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
  ) -> list[aiohttp.abc.ResolveResult]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future = loop.create_future()

    def give(result: Any) -> None:
      if answer.cancelled():
        return
      (answer.set_exception if isinstance(result, Exception) else answer.set_result)(result)

    def look_up() -> None:
      try:
        result = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
      except Exception as error:
        result = error
      with contextlib.suppress(RuntimeError):  # the loop is closed by now
        loop.call_soon_threadsafe(give, result)

    threading.Thread(target=look_up, daemon=True).start()
    return [
      {
        "hostname": host,
        "host": socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
        "port": port,
        "family": found_family,
        "proto": protocol,
        "flags": socket.AI_NUMERICHOST,
      }
      for found_family, _, protocol, _, address in await answer
    ]

  async def close(self) -> None:
    """Nothing to close."""


def _proxy(url: str) -> str | None:
  """Returns the proxy that the environment names for a url."""
  parts = urllib.parse.urlsplit(url)
  if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
    return None
  return urllib.request.getproxies().get(parts.scheme)


def _reason(error: Exception) -> str:
  code = getattr(error, "errno", None)
  if isinstance(code, int) and code > 0:
    return os.strerror(code)
  return getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)


def _retry_after_seconds(headers: Mapping[str, str]) -> float:
  """Returns the seconds of a Retry-After header; 0 when there is none or it is a date."""
  value = headers.get("Retry-After") or ""
  return float(value) if value.isascii() and value.isdigit() else 0.0
