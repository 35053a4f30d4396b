"""The page in a browser, Chromium without a window; the service gives fixed answers."""

import contextlib
import html.parser
import re
import shutil
import socket
import subprocess
import threading
import time
import types

import pytest
import uvicorn

from mmesid_jax.service.app import PAGE, create_app
from mmesid_jax.service.messages import RequestError
from mmesid_jax.service.prometheus import Metrics
from mmesid_jax.service.service import Limits

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
HOSTILE = "<img src=x onerror=document.title='owned'>"
PNG = bytes.fromhex(
  "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
  "0000000d49444154789c63f8cfc0f01f0005050201a5f645400000000049454e44ae426082"
)


class FixedAnswers:
  """As much of `Service` as the page asks."""

  def __init__(self):
    self.limits, self.reloads = Limits(), 0
    self.batcher = types.SimpleNamespace(is_alive=True)
    self.live = types.SimpleNamespace(num_items=3)
    self.images = ()

  async def follow_artifacts(self):
    pass

  def close(self):
    pass

  def history(self, user, newest):
    assert newest == 20
    if user != 1:
      raise RequestError(f"user {user} is not known")
    return {"user": 1, "earlier": 6, "items": [2, 3], "titles": ["Soap", None]}

  async def recommend(self, request):
    assert request.users == [1] and request.reasons and request.top_k == 10
    parts = ({"transitions": 3.0, "similar text": 1.0}, {"transitions": 2.0, "similar text": -0.5})
    names = (("K1", HOSTILE, 4.0), (None, "Balm", 1.5))
    return {
      "answers": [
        {
          "items": [
            {"item": n, "key": key, "title": title, "score": score, "parts": of_item}
            for n, ((key, title, score), of_item) in enumerate(zip(names, parts, strict=True), 1)
          ]
        }
      ]
    }


class Images:
  def __len__(self):
    return 1

  def read(self, item):
    return (PNG, "image/png") if item in (1, 3) else None


@contextlib.contextmanager
def served(service):
  """The address of the service, in a thread."""
  listener = socket.create_server(("127.0.0.1", 0))
  app = create_app(service, Metrics())
  server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
  thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
  thread.start()
  try:
    while not server.started:
      time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
  finally:
    server.should_exit = True
    thread.join()


class Text(html.parser.HTMLParser):
  """Texts, images and widths of bars in a page, by the id of the element that holds them."""

  def __init__(self, page: str):
    super().__init__()
    self.ids, self.text, self.images, self.widths, self.start = [], {}, {}, {}, None
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    self.start = given.get("start", self.start)
    if tag not in ("meta", "input", "img"):
      self.ids.append(given.get("id") or (self.ids[-1] if self.ids else ""))
    elif tag == "img":
      self.images[self.ids[-1]] = self.images.get(self.ids[-1], 0) + 1
    if width := re.search(r"width: ([\d.]+)%", given.get("style") or ""):
      self.widths.setdefault(self.ids[-1], []).append(float(width[1]))

  def handle_endtag(self, tag):
    self.ids.pop()

  def handle_data(self, data):
    if self.ids:
      self.text[self.ids[-1]] = self.text.get(self.ids[-1], "") + data


def look_at(address: str, folder) -> Text:
  """The page after its script has run."""
  command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
  command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
  command += [f"--user-data-dir={folder}", "--virtual-time-budget=10000", "--dump-dom", address]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return Text(done.stdout)


@needs_chromium
def test_it_shows_history_recommendations_and_reasons(tmp_path):
  with served(FixedAnswers()) as address:
    page = look_at(address, tmp_path)
  assert page.text["history"].split() == ["Soap", "2item", "3"]
  assert page.start == "7"  # after the six earlier ones
  assert HOSTILE in page.text["items"] and not page.images  # a text, not an element
  assert "K1, item 1, score 4.00" in page.text["items"]
  assert "transitions 2.00 + similar text -0.50" in page.text["items"]
  assert page.text["legend"].endswith("transitionssimilar text")
  assert page.widths["items"] == [75, 25, 50]  # of the largest sum; a negative part has no width
  assert page.text.get("error", "").strip() == ""


@needs_chromium
def test_it_shows_images(tmp_path):
  service = FixedAnswers()
  service.images = Images()
  with served(service) as address:
    page = look_at(address, tmp_path)
  assert page.images == {"history": 1, "items": 1}


@needs_chromium
def test_it_shows_why_a_request_is_refused(tmp_path):
  service = FixedAnswers()
  service.history = lambda user, newest: FixedAnswers.history(service, 7, newest)
  with served(service) as address:
    page = look_at(address, tmp_path)
  assert page.text["error"] == "user 7 is not known"


def test_it_asks_no_other_site():
  assert not re.search(rb"(https?:)?//[\w.-]+\.\w", PAGE)
  assert b"src=" not in PAGE and b"href=" not in PAGE and b"@import" not in PAGE
