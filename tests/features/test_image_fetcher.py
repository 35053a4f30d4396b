"""The command `fetch_images` against a local server that misbehaves differently for every path."""

import asyncio
import collections
import http.server
import json
import signal
import socket
import threading
import time

import pytest
from commands import refused, run, start

from mmesid_jax.features.download import Downloader, DownloadFailed, is_public

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FOREVER = {  # no single read takes long
  "headers": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
  "many_headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n"),
  "chunk_size": (CHUNKED, b"0"),
  "chunk_comment": (CHUNKED + b"5;", b"x"),
  "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
  "silent": (b"", b""),
}
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
    if name in FOREVER:
      return self.send_forever(*FOREVER[name])
    if name == "round":
      return self.answer(302, b"", {"Location": "/round"})
    if name == "by_name":
      port = self.server.server_port
      return self.answer(302, b"", {"Location": f"http://localhost:{port}/good"})
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

  def send_forever(self, head, piece):
    """Sends the head, then the piece again and again, until the client leaves."""
    try:
      self.wfile.write(head)
      while True:
        self.wfile.write(piece)
        time.sleep(0.02)
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


def command(data, *, retries=1, timeout=1):
  quick = ("--per_second=100", f"--retries={retries}", f"--timeout={timeout}")
  places = (f"--data={data}", f"--output={data / 'images'}")
  return (*places, "--allow_private", "--max_megabytes=0.05", *quick)


def manifest(data):
  lines = (data / "images" / "manifest.jsonl").read_text().splitlines()
  return {entry["key"]: entry for entry in map(json.loads, lines)}


def test_images_are_fetched_and_everything_else_is_reported(server, tmp_path):
  at = f"http://127.0.0.1:{server.server_port}"
  paths = "good busy moved to_file absent page huge endless cut slow".split()
  images = {key: [f"{at}/{key}", "never asked for"] for key in paths}
  images |= {"a/b": [f"{at}/good"], "none": None, "local": ["a.jpg"], "ftp": ["ftp://x/a.jpg"]}
  images |= {"odd": ["http://127.0.0.1:port/x"]}
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
  assert reasons["to_file"] == "redirected to something other than http or https"
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


def test_requests_of_all_tasks_are_spaced():
  download = Downloader(per_second=5, retries=0, timeout=1, max_bytes=1)
  assert [round(download._reserve_request(7.0), 6) for _ in range(4)] == [0, 0.2, 0.4, 0.6]
  # unused requests do not add up
  assert [round(download._reserve_request(9.0), 6) for _ in range(2)] == [0, 0.2]


def failure_of(url, **settings):
  """The DownloadFailed of one attempt."""

  async def download():
    settings_used = {"per_second": 100, "retries": 0, "timeout": 1, "max_bytes": 10**6} | settings
    async with Downloader(**settings_used) as downloader:
      with pytest.raises(DownloadFailed) as failure:
        await downloader(url)
      return failure.value

  return asyncio.run(asyncio.wait_for(download(), 20))


@pytest.mark.parametrize("name", FOREVER)
def test_a_deadline_holds_for_the_whole_request(server, name):
  at = f"http://127.0.0.1:{server.server_port}"
  failure = failure_of(f"{at}/{name}", allow_private=True, timeout=0.5)
  # a limit of the parser on headers may end it earlier
  assert "not complete after 0.5 seconds" in str(failure) or name.endswith("headers")


def test_a_deadline_holds_while_a_name_is_looked_up(monkeypatch):
  done, finished = threading.Event(), []

  def getaddrinfo(*_):
    done.wait(20)
    finished.append(True)
    return []

  monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
  try:
    assert "not complete after 0.3 seconds" in str(failure_of("http://name.test/", timeout=0.3))
    assert not finished  # nothing waited for it
  finally:
    done.set()


def test_redirects_end(server):
  url = f"http://127.0.0.1:{server.server_port}/round"
  assert str(failure_of(url, allow_private=True)) == "redirected too often"


@pytest.mark.parametrize(
  "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "0x7f000001"]
)
def test_addresses_of_this_machine_are_not_asked(server, host):
  failure = failure_of(f"http://{host}:{server.server_port}/good", retries=3)
  assert not server.RequestHandlerClass.asked
  # [::1] may not exist, and aiohttp refuses unusual numbers by itself
  assert "--allow_private permits it" in str(failure) or host == "0x7f000001"
  assert not failure.reached and not failure.retry


def test_a_redirect_into_this_machine_is_not_followed(server, monkeypatch):
  """127.0.0.1 stands for a public server; the name it redirects to is only known afterwards."""
  real = is_public
  monkeypatch.setattr(
    "mmesid_jax.features.download.is_public", lambda a: a == "127.0.0.1" or real(a)
  )
  monkeypatch.setattr(
    "socket.getaddrinfo",
    lambda host, port, *_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))],
  )
  failure = failure_of(f"http://127.0.0.1:{server.server_port}/by_name")
  assert str(failure) == "127.0.0.2 is not a public address; --allow_private permits it"
  assert server.RequestHandlerClass.asked == {"by_name": 1}


def test_the_address_that_is_checked_is_the_one_of_the_connection(server, monkeypatch):
  """A name server that gives another address at the second question gains nothing."""
  answers = iter(["192.0.2.1", "127.0.0.1"])
  looked_up = []

  def getaddrinfo(host, port, *_):
    looked_up.append(next(answers))
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (looked_up[-1], port))]

  monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
  failure = failure_of(f"http://rebinding.test:{server.server_port}/good", retries=1)
  assert "192.0.2.1 is not a public address" in str(failure)
  assert looked_up == ["192.0.2.1"] and not server.RequestHandlerClass.asked


def test_public_addresses():
  for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"):
    assert is_public(address), address
  assert is_public("64:ff9b::5db8:d822")  # NAT64 of 93.184.216.34
  for address in (
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
    *("::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1"),
    *("fec0::1", "64:ff9b:1::5db8:d822", "::127.0.0.1", "::ffff:0:7f00:1", "5f00::1"),
    *("3fff::1", "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110"),
  ):
    assert not is_public(address), address


def test_private_addresses_are_refused_in_one_line_with_the_flag(tmp_path):
  write_items(tmp_path, {f"k{i}": ["http://127.0.0.1:9/k"] for i in range(20)})
  line = refused("fetch_images", *(a for a in command(tmp_path) if a != "--allow_private"))
  assert "127.0.0.1 is not a public address; --allow_private permits it" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_with_one_line(server, tmp_path, number):
  at = f"http://127.0.0.1:{server.server_port}"
  write_items(tmp_path, {"good": [f"{at}/good"], "silent": [f"{at}/continue"]})
  process = start("fetch_images", *command(tmp_path, timeout=3600))
  while server.RequestHandlerClass.asked.keys() != {"good", "continue"}:
    time.sleep(0.05)
    assert process.poll() is None, process.communicate()
  while not list((tmp_path / "images").glob("good.png")):
    time.sleep(0.05)
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert err.startswith(f"stopped: {number.name}; ") and err.count("\n") == 1
  assert manifest(tmp_path).keys() == {"good"}


def test_it_gives_up_soon_without_a_network(tmp_path):
  write_items(tmp_path, {f"k{i}": ["http://127.0.0.1:9/k"] for i in range(200)})
  line = refused("fetch_images", *command(tmp_path, retries=0))
  assert "refused" in line and "no server answers for any of 20 images" in line


def test_no_image_at_all_is_an_error(server, tmp_path):
  at = f"http://127.0.0.1:{server.server_port}"
  write_items(tmp_path, {"a": [f"{at}/absent"], "b": [f"{at}/page"], "none": None})
  line = refused("fetch_images", *command(tmp_path))
  assert "images: none of 2 images could be fetched (" in line and "a: HTTP 404" in line
  assert manifest(tmp_path).keys() == {"a", "b"}


def test_mistakes_are_one_line(tmp_path):
  assert "items.jsonl: no such file" in refused("fetch_images", *command(tmp_path))
  (tmp_path / "items.jsonl").write_text('{"item_id": 1, "asin": "B1"}\n')
  assert "no text under 'key'" in refused("fetch_images", *command(tmp_path))
