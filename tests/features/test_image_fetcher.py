"""The command `fetch_images` against a local server that misbehaves differently for every path."""

import collections
import http.server
import json
import threading
import time

import pytest
from commands import refused, run

from mmesid_jax.features.download import Downloader

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


class Server(http.server.BaseHTTPRequestHandler):
  asked: collections.Counter
  healed: bool

  def do_GET(self):
    name = self.path.strip("/")
    self.asked[name] += 1
    if name == "busy" and self.asked[name] == 1:
      return self.answer(503, b"", {"Retry-After": "1"})
    if name == "moved":
      return self.answer(302, b"", {"Location": "/good"})
    if name == "to_file":
      return self.answer(302, b"", {"Location": "file:///etc/hostname"})
    if name == "absent":
      return self.answer(404, b"") if not self.healed else self.answer(200, PNG)
    if name == "page":
      return self.answer(200, b"<html>no image</html>", {"Content-Type": "text/html"})
    if name == "huge":
      return self.answer(200, PNG + bytes(100_000))
    if name == "endless":  # does not state its length
      return self.answer(200, PNG + bytes(100_000), {"Content-Length": None})
    if name == "cut":
      return self.answer(200, PNG, {"Content-Length": "5000"})
    if name == "slow":
      return self.drip()
    self.answer(200, PNG)

  def answer(self, status, body, headers=()):
    self.send_response(status)
    for header, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
      if value is not None:
        self.send_header(header, value)
    self.end_headers()
    self.wfile.write(body)

  def drip(self):
    """Sends a byte at a time, so that no single read takes long."""
    self.answer(200, PNG[:8], {"Content-Length": "1000"})
    try:
      for _ in range(100):
        self.wfile.write(b"x")
        self.wfile.flush()
        time.sleep(0.1)
    except OSError:
      pass

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  handler = type("Handler", (Server,), {"asked": collections.Counter(), "healed": False})
  found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  found.daemon_threads = True
  threading.Thread(target=found.serve_forever, daemon=True).start()
  yield found
  found.shutdown()
  found.server_close()


def write_items(folder, images):
  folder.mkdir(exist_ok=True)
  lines = [
    {"item_id": i, "key": key, "images": found} for i, (key, found) in enumerate(images.items(), 1)
  ]
  (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(data, *more):
  quick = ("--per_second=100", "--retries=1", "--timeout=1", "--max_megabytes=0.05")
  return (f"--data={data}", f"--output={data / 'images'}", *quick, *more)


def manifest(data):
  lines = (data / "images" / "manifest.jsonl").read_text().splitlines()
  return {entry["key"]: entry for entry in map(json.loads, lines)}


def test_images_are_fetched_and_everything_else_is_reported(server, tmp_path):
  at = f"http://127.0.0.1:{server.server_port}"
  paths = "good busy moved to_file absent page huge endless cut slow".split()
  images = {key: [f"{at}/{key}", "never asked for"] for key in paths}
  images |= {"a/b": [f"{at}/good"], "none": None, "local": ["a.jpg"], "ftp": ["ftp://x/a.jpg"]}
  images |= {"odd": [f"{at}/sp ace"]}
  data = tmp_path / "data"
  write_items(data, images)
  status, out, err = run("fetch_images", *command(data))
  assert status == 0, err
  assert "images of 4 of 15 items, 4 of them new; 3 items have no url; 8 failed" in out

  found = manifest(data)
  assert {k for k, e in found.items() if e["status"] == "ok"} == {"good", "busy", "moved", "a/b"}
  for key in ("good", "busy", "moved", "a/b"):
    assert (data / "images" / found[key]["file"]).read_bytes() == PNG
  assert found["a/b"]["file"] == "a%2Fb.png"
  reasons = {k: e["reason"] for k, e in found.items() if e["status"] == "failed"}
  assert reasons["absent"] == "HTTP 404"
  assert reasons["to_file"] == "HTTP 302"
  assert reasons["page"] == "not an image (text/html)"
  assert reasons["huge"] == "100,208 bytes, more than 50,000"
  assert reasons["endless"] == "more than 50,000 bytes"
  assert reasons["cut"] == "cut short, 208 of 5,000 bytes"
  assert reasons["slow"] == "not complete after 1 seconds"
  assert "no usable url" in reasons["odd"]
  assert sorted(p.name for p in (data / "images").iterdir()) == sorted(
    ["manifest.jsonl", *(found[k]["file"] for k in ("good", "busy", "moved", "a/b"))]
  )
  asked = server.RequestHandlerClass.asked
  assert asked["busy"] == asked["cut"] == asked["slow"] == 2  # tried again, once
  assert asked["absent"] == asked["page"] == asked["huge"] == 1  # trying again would not help

  server.RequestHandlerClass.healed = True
  file = data / "images" / "manifest.jsonl"
  file.write_bytes(file.read_bytes() + b'{"key": "absent", "url')  # killed there
  before = asked["good"]
  status, out, err = run("fetch_images", *command(data))
  assert status == 0, err
  assert "images of 5 of 15 items, 1 of them new" in out
  assert asked["good"] == before and manifest(data)["absent"]["status"] == "ok"


def test_missing_files_and_new_urls_are_fetched_again(server, tmp_path):
  at = f"http://127.0.0.1:{server.server_port}"
  write_items(tmp_path, {"a": [f"{at}/a"], "b": [f"{at}/b"], "c": [f"{at}/c"]})
  assert run("fetch_images", *command(tmp_path))[0] == 0
  (tmp_path / "images" / "a.png").unlink()
  write_items(tmp_path, {"a": [f"{at}/a"], "b": [f"{at}/b2"], "c": [f"{at}/c"]})
  status, out, _ = run("fetch_images", *command(tmp_path))
  assert "images of 3 of 3 items, 2 of them new" in out
  assert server.RequestHandlerClass.asked == {"a": 2, "b": 1, "b2": 1, "c": 1}


def test_requests_of_all_threads_are_spaced(monkeypatch):
  monkeypatch.setattr("time.monotonic", lambda: 7.0)
  download = Downloader(per_second=5, retries=0, timeout=1, max_bytes=1)
  assert [round(download._reserve_request(), 6) for _ in range(4)] == [0, 0.2, 0.4, 0.6]
  monkeypatch.setattr("time.monotonic", lambda: 9.0)  # unused requests do not add up
  assert [round(download._reserve_request(), 6) for _ in range(2)] == [0, 0.2]


def test_it_gives_up_soon_without_a_network(tmp_path):
  write_items(tmp_path, {f"k{i}": ["http://127.0.0.1:9/k"] for i in range(200)})
  line = refused("fetch_images", *command(tmp_path, "--retries=0"))
  assert "refused" in line and "no server answers for any of 20 images" in line


def test_mistakes_are_one_line(tmp_path):
  assert "items.jsonl: no such file" in refused("fetch_images", *command(tmp_path))
  (tmp_path / "items.jsonl").write_text('{"item_id": 1, "asin": "B1"}\n')
  assert "no text under 'key'" in refused("fetch_images", *command(tmp_path))
