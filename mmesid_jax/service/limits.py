"""Bounds on what clients may send: bytes and seconds of a request, and its token."""

import asyncio
import hmac
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OPEN = {"/", "/health", "/ready"}  # paths that need no token
HEADER_SECONDS = 10.0
LAST_SECONDS = 1.0  # for the first request of a connection that was made before the service stopped


class Limited:
  """An ASGI app that takes requests with the right token and a small body of JSON alone.

  The body is read before the app is called, within `seconds`. Pages of other sites cannot send JSON
  without asking the browser first, so they cannot add events to a service on the same machine.

  Args:
    app: the app that answers.
    body_bytes: largest body.
    seconds: for a body to arrive.
    token: expected in the header Authorization as "Bearer TOKEN"; None = anybody may ask.
  """

  def __init__(self, app: Callable, body_bytes: int, seconds: float, token: str | None):
    self._app, self._body_bytes, self._seconds, self._token = app, body_bytes, seconds, token

  async def __call__(self, scope, receive, send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = dict(scope["headers"])
    if not self._may_ask(scope["path"], headers):
      await _refuse(send, 401, "expected the header Authorization: Bearer TOKEN")
      return
    content = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if scope["method"] == "POST" and content != b"application/json":
      await _refuse(send, 415, "expected the header Content-Type: application/json")
      return
    try:
      async with asyncio.timeout(self._seconds):
        body = await self._read_body(headers, receive)
    except TimeoutError:
      await _refuse(send, 408, f"the body did not arrive within {self._seconds:g} seconds")
      return
    except ValueError:
      await _refuse(send, 413, f"the body is larger than {self._body_bytes:,} bytes")
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


async def _refuse(send, status: int, error: str) -> None:
  content = json.dumps({"error": error}).encode()
  headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": content})


class TimedProtocol(HttpToolsProtocol):
  """Closes a connection whose request line and headers do not arrive in time.

  uvicorn bounds the time between requests, and nothing before the first or within one. When the
  service stops, a connection whose first request is on its way is answered, too.
  """

  _timer: asyncio.TimerHandle | None = None
  _is_last = False  # whether the connection ends with its next answer

  def connection_made(self, transport) -> None:
    super().connection_made(transport)
    self._start()

  def data_received(self, data: bytes) -> None:
    if self._timer is None and (self.cycle is None or self.cycle.response_complete):
      self._start()
    super().data_received(data)

  def on_headers_complete(self) -> None:
    self._stop()
    super().on_headers_complete()
    if self._is_last:
      self.cycle.keep_alive = False

  def shutdown(self) -> None:
    if self.cycle is not None:
      super().shutdown()
      return
    self._stop()
    self._is_last = True
    self._timer = self.loop.call_later(LAST_SECONDS, self._close)

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop()
    super().connection_lost(exc)

  def _start(self) -> None:
    self._timer = self.loop.call_later(HEADER_SECONDS, self._close)

  def _stop(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _close(self) -> None:
    if not self.transport.is_closing():
      self.transport.close()
