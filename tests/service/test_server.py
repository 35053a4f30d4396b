"""The service as a process: a newer model and the end of it under load; and slow connections."""

import asyncio
import collections
import http.client
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

import numpy as np
import pytest
import uvicorn
from commands import run, start

from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.service import limits


def ask(url: str, path: str, content=None) -> tuple[int, dict]:
  data = None if content is None else json.dumps(content).encode()
  request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
  try:
    with urllib.request.urlopen(request, timeout=60) as answer:
      return answer.status, json.load(answer)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def figures(url: str) -> str:
  with urllib.request.urlopen(url + "/metrics", timeout=60) as answer:
    return answer.read().decode()


class Load:
  """Clients that ask one request after the other until the service no longer takes connections,
  half of them on a connection that they keep."""

  def __init__(self, url: str, clients: int):
    self.url, self.counts, self.lost = url, collections.Counter(), []
    self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(clients)]
    for thread in self.threads:
      thread.start()

  def run(self, seed: int) -> None:
    n, kept = seed, http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
    while True:
      n += 1
      history = [1 + (7 * n + k) % 40 for k in range(n % 9)]
      request = {"histories": [history], "top_k": 3}
      try:
        if seed % 2:
          status, content = ask(self.url, "/recommend", request)
        else:
          headers = {"Content-Type": "application/json"}
          kept.request("POST", "/recommend", json.dumps(request), headers)
          answer = kept.getresponse()
          status, content = answer.status, json.load(answer)
      except (urllib.error.URLError, ConnectionRefusedError) as error:
        if isinstance(getattr(error, "reason", error), ConnectionRefusedError):
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
    old = ask(url, "/recommend", {"histories": [[1]], "reasons": True, "top_k": 1})[1]
    tensors, header = read_artifact(workdir / "blend.safetensors", "blend")
    tensors["weights"] = np.float32([0.2, 0.9])
    write_artifact(tmp_path / "blend.safetensors", tensors, header)
    os.replace(tmp_path / "blend.safetensors", workdir / "blend.safetensors")
    deadline = time.monotonic() + 120
    while ask(url, "/ready")[1]["reloads"] < 1:
      assert time.monotonic() < deadline, "the newer model is not served"
      time.sleep(0.2)
    new = ask(url, "/recommend", {"histories": [[1]], "reasons": True, "top_k": 1})[1]
    assert new != old
    (tmp_path / "bad").write_bytes(b"not an artifact")
    os.replace(tmp_path / "bad", workdir / "blend.safetensors")
    while "mmesid_failed_reloads 1.0" not in figures(url):
      assert time.monotonic() < deadline, "damaged artifacts are not noticed"
      time.sleep(0.2)
    assert ask(url, "/recommend", {"histories": [[1]], "reasons": True, "top_k": 1})[1] == new
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
  assert process.returncode == 0 and "stopped" in out, err
  assert "Traceback" not in err and "newer artifacts are not served" in err


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


def test_headers_without_end_are_closed(quick, monkeypatch):
  monkeypatch.setattr(limits, "HEADER_SECONDS", 60)
  with socket.create_connection(quick, timeout=20) as connection:
    try:
      connection.sendall(HEAD)
      for _ in range(20):
        connection.sendall(b"X: " + b"x" * 9000 + b"\r\n")
      found = connection.recv(100)
    except ConnectionError:
      found = b""
  assert not found


def test_a_slow_body_and_a_large_one_are_refused(quick):
  slow = received(quick, HEAD + b"Content-Length: 10\r\n\r\n{", pause=0.05)
  assert slow.startswith(b"HTTP/1.1 408") and b"within 0.3 seconds" in slow
  large = received(quick, HEAD + b"Content-Length: 1001\r\n\r\n{")
  assert large.startswith(b"HTTP/1.1 413")
  chunk = b"%x\r\n%s\r\n" % (600, b"x" * 600)
  chunked = received(quick, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk)
  assert chunked.startswith(b"HTTP/1.1 413")
  with socket.create_connection(quick, timeout=20) as connection:  # it sends all before it reads
    connection.sendall(HEAD + b"Content-Length: 3000000\r\n\r\n" + b" " * 3_000_000)
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
  whole = received(quick, HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
  assert whole.startswith(b"HTTP/1.1 200") and whole.endswith(b'{"length": 2}')
