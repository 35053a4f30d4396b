"""The service as a process: a newer model and the end of it under load; and slow connections."""

import asyncio
import collections
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
import uvicorn
from commands import run, start

from mmesid_jax.service import limits


def ask(url: str, path: str, content=None) -> tuple[int, dict]:
  data = None if content is None else json.dumps(content).encode()
  request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
  try:
    with urllib.request.urlopen(request, timeout=60) as answer:
      return answer.status, json.load(answer)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


class Load:
  """Clients that ask one request after the other until the service no longer takes connections."""

  def __init__(self, url: str, clients: int):
    self.url, self.counts, self.lost = url, collections.Counter(), []
    self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(clients)]
    for thread in self.threads:
      thread.start()

  def run(self, seed: int) -> None:
    n = seed
    while True:
      n += 1
      history = [1 + (7 * n + k) % 40 for k in range(n % 9)]
      try:
        status, content = ask(self.url, "/recommend", {"histories": [history], "top_k": 3})
      except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
          return  # it takes no more
        self.lost.append(repr(error))
        return
      except Exception as error:  # an answer that was cut
        self.lost.append(repr(error))
        return
      self.counts[status] += 1
      if status == 200 and len(content["answers"][0]["items"]) != 3:
        self.lost.append(content)


def test_a_newer_model_and_sigterm_under_load_lose_no_request(blended, tmp_path):
  workdir = shutil.copytree(blended, tmp_path / "run")
  process = start("serve", f"--workdir={workdir}", "--port=0", "--max_top_k=5")
  try:
    for line in process.stdout:
      if found := re.search(r"ready: (http://127\.0\.0\.1:\d+)/", line):
        break
    else:
      pytest.fail(process.stderr.read())
    url = found[1]
    load = Load(url, 6)
    for name in ("blend", "recommender"):  # equal bytes, but another file
      shutil.copy(workdir / f"{name}.safetensors", tmp_path / name)
      os.replace(tmp_path / name, workdir / f"{name}.safetensors")
    deadline = time.monotonic() + 120
    while ask(url, "/ready")[1]["reloads"] < 1:
      assert time.monotonic() < deadline, "the newer model is not served"
      time.sleep(0.2)
    reached = sum(load.counts.values())
    while sum(load.counts.values()) < reached + 50:
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    for thread in load.threads:
      thread.join(60)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert not load.lost and set(load.counts) == {200} and load.counts[200] > 50
  assert process.returncode == 0 and "stopped: all requests are answered" in out, err
  assert "Traceback" not in err


@pytest.mark.parametrize(
  "flags, line",
  [
    (["--host=0.0.0.0"], "others can reach it, and no token is set; set MMESID_TOKEN, or say"),
    (["--host=no.such.host.invalid", "--no_token"], "--host=no.such.host.invalid --port=8000: "),
    (["--model=generated"], "without 'generated'"),
  ],
)
def test_what_cannot_be_served_is_one_line(blended, flags, line):
  status, out, err = run("serve", f"--workdir={blended}", *flags)
  assert status == 2 and err.count("\n") == 1 and err.startswith("error: ") and line in err, err


def test_a_port_in_use_is_told_before_the_model_is_read(blended):
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    status, out, err = run("serve", f"--workdir={blended}", f"--port={port}")
  assert status == 2 and not out and f"--port={port}: " in err


@pytest.fixture
def quick(monkeypatch):
  """A server with short limits of time, before an app that answers with the body's length."""
  monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)

  async def app(scope, receive, send):
    body = (await receive())["body"]
    content = json.dumps({"length": len(body)}).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})

  limited = limits.Limited(app, 1000, 0.3, None)
  listener = socket.create_server(("127.0.0.1", 0))
  config = uvicorn.Config(limited, http=limits.TimedProtocol, lifespan="off", log_level="error")
  server = uvicorn.Server(config)
  thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
  thread.start()
  yield listener.getsockname()
  server.should_exit = True
  thread.join(20)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def received(address, *parts: bytes, pause: float = 0.0) -> bytes:
  """All that the server sends until it closes the connection."""
  with socket.create_connection(address, timeout=20) as connection:
    for part in parts:
      connection.sendall(part)
      time.sleep(pause)
    found = b""
    while chunk := connection.recv(65536):
      found += chunk
    return found


@pytest.mark.parametrize(
  "parts",
  [(), (b"POST / HT",), (HEAD,), (HEAD + b"Content-Length: 2\r\n\r\n{}", b"POST / H")],
  ids=["nothing", "half a line", "half the headers", "half a second request"],
)
def test_a_connection_without_whole_headers_is_closed(quick, parts):
  found = received(quick, *parts, pause=0.05)
  assert found.count(b"HTTP/1.1 200") == (len(parts) > 1)


def test_a_slow_body_and_a_large_one_are_refused(quick):
  slow = received(quick, HEAD + b"Content-Length: 10\r\n\r\n{", pause=0.05)
  assert slow.startswith(b"HTTP/1.1 408") and b"within 0.3 seconds" in slow
  large = received(quick, HEAD + b"Content-Length: 1001\r\n\r\n{")
  assert large.startswith(b"HTTP/1.1 413")
  chunk = b"%x\r\n%s\r\n" % (600, b"x" * 600)
  chunked = received(quick, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk)
  assert chunked.startswith(b"HTTP/1.1 413")
  whole = received(quick, HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
  assert whole.startswith(b"HTTP/1.1 200") and whole.endswith(b'{"length": 2}')
