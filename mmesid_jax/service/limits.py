"""Bounds on what clients may send: bytes and seconds of a request, and its token."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OPEN = {"/", "/health", "/ready"}  # paths that need no token
HEADER_SECONDS = 10.0
HEADER_BYTES = 2**16
LAST_SECONDS = 1.0  # that an idle connection still has for a request when the service stops
READ_SECONDS = 30.0  # that a client may take to read the next part of an answer
DRAIN_SECONDS = 1.0  # for the rest of a body that is refused
LOCAL_HOSTS = (b"localhost", b"127.0.0.1", b"[::1]")


class Limited:
  """An ASGI app that takes requests with the right token and a small body of JSON alone.

  The body is read before the app is called, within `seconds`. A page of another site in a browser
  on the same machine cannot use the service: a browser sends no JSON to another site unasked, and
  `local_only` refuses the header Host of a name that was made to lead here.

  Args:
    app: the app that answers.
    body_bytes: largest body.
    seconds: for a body to arrive.
    token: expected in the header Authorization as "Bearer TOKEN"; None = anybody may ask.
    local_only: whether the header Host must name this machine.
  """

  def __init__(
    self,
    app: Callable,
    body_bytes: int,
    seconds: float,
    token: str | None,
    *,
    local_only: bool = False,
  ):
    self._app, self._body_bytes, self._seconds, self._token = app, body_bytes, seconds, token
    self._local_only = local_only

  async def __call__(self, scope, receive, send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = dict(scope["headers"])
    if self._local_only and not _is_local(headers.get(b"host", b"")):
      await _refuse(receive, send, 421, "expected the header Host: localhost, or 127.0.0.1")
      return
    if not self._may_ask(scope["path"], headers):
      await _refuse(receive, send, 401, "expected the header Authorization: Bearer TOKEN")
      return
    content = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if scope["method"] == "POST" and content != b"application/json":
      await _refuse(receive, send, 415, "expected the header Content-Type: application/json")
      return
    try:
      async with asyncio.timeout(self._seconds):
        body = await self._read_body(headers, receive)
    except TimeoutError:
      await _refuse(receive, send, 408, f"the body did not arrive within {self._seconds:g} seconds")
      return
    except ValueError:
      await _refuse(receive, send, 413, f"the body is larger than {self._body_bytes:,} bytes")
      return
    if body is None:
      return  # the client has gone
    given = False

    async def receive_again():
      nonlocal given
      if given:
        return await receive()
      given = True
      return {"type": "http.request", "body": body, "more_body": False}

    await self._app(scope, receive_again, send)

  def _may_ask(self, path: str, headers: dict[bytes, bytes]) -> bool:
    if self._token is None or path in OPEN:
      return True
    given = headers.get(b"authorization", b"")
    return hmac.compare_digest(given, b"Bearer " + self._token.encode())

  async def _read_body(self, headers: dict[bytes, bytes], receive) -> bytes | None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > self._body_bytes:
      raise ValueError
    parts, size, more = [], 0, True
    while more:
      message = await receive()
      if message["type"] == "http.disconnect":
        return None
      parts.append(message.get("body", b""))
      size += len(parts[-1])
      more = message.get("more_body", False)
      if size > self._body_bytes:
        raise ValueError
    return b"".join(parts)


def _is_local(host: bytes) -> bool:
  name = host.rsplit(b":", 1)[0] if not host.endswith(b"]") else host
  return name.lower() in LOCAL_HOSTS


async def _refuse(receive, send, status: int, error: str) -> None:
  """Answers, after the rest of the body has been thrown away.

  A client that still sends would get an error of its connection instead.
  """
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(DRAIN_SECONDS):
      while (message := await receive())["type"] == "http.request":
        if not message.get("more_body", False):
          break
  content = json.dumps({"error": error}).encode()
  headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": content})


class TimedProtocol(HttpToolsProtocol):
  """Closes a connection whose headers are late or large, or that does not read its answer.

  uvicorn bounds the time between requests alone. When the service stops, a connection whose request
  is on its way is answered, too.
  """

  _timer: asyncio.TimerHandle | None = None  # for headers
  _reading: asyncio.TimerHandle | None = None  # for a client that does not read
  _is_last = False  # whether the connection ends with its next answer
  _header_bytes = 0

  def connection_made(self, transport) -> None:
    super().connection_made(transport)
    self._start(HEADER_SECONDS)

  def data_received(self, data: bytes) -> None:
    if self._is_idle():
      if self._timer is None:
        self._start(HEADER_SECONDS)
      self._header_bytes += len(data)  # with the part of a body that comes with them
      if self._header_bytes > HEADER_BYTES and b"\r\n\r\n" not in data:
        self._close()
        return
    super().data_received(data)

  def on_headers_complete(self) -> None:
    self._stop()
    self._header_bytes = 0
    super().on_headers_complete()
    if self._is_last:
      self.cycle.keep_alive = False

  def pause_writing(self) -> None:
    super().pause_writing()
    self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

  def resume_writing(self) -> None:
    super().resume_writing()
    if self._reading is not None:
      self._reading.cancel()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop()
    if self._reading is not None:
      self._reading.cancel()
    super().connection_lost(exc)

  def shutdown(self) -> None:
    if not self._is_idle():
      super().shutdown()
      return
    self._stop()
    self._is_last = True
    self._start(LAST_SECONDS)

  def _is_idle(self) -> bool:
    return self.cycle is None or self.cycle.response_complete

  def _start(self, seconds: float) -> None:
    self._timer = self.loop.call_later(seconds, self._close)

  def _stop(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _close(self) -> None:
    if not self.transport.is_closing():
      self.transport.close()
