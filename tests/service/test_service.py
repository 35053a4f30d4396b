"""The service within this process: its answers, what it remembers, and what it refuses."""

import asyncio
import functools
import itertools
import json
import os
import shutil

import httpx
import numpy as np
import pytest

from mmesid_jax.features import tfidf_encoder
from mmesid_jax.features.encode_items import EncodeSettings, encode_items
from mmesid_jax.service import images, live_model, service, users
from mmesid_jax.service.app import create_app
from mmesid_jax.service.prometheus import Metrics
from mmesid_jax.service.service import Limits, Service
from mmesid_jax.serving import ranker
from mmesid_jax.serving.answer import recommendation_json
from mmesid_jax.serving.ranker import _explain, rank_items
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.serving.refreshed_counts import refresh_counts

TOP_K = 20
LIMITS = Limits(queue=200, items=100, body_bytes=20_000, top_k=TOP_K)


class Client:
  """Asks a service of a workdir; the model is warm."""

  def __init__(self, path, limits=LIMITS, token=None, model=None):
    self.metrics = Metrics()
    load = functools.partial(Recommender.load, path, model=model)
    self.service = Service(path, load, limits, self.metrics.add_batch)
    self.app = create_app(self.service, self.metrics, token)

  async def _ask(self, requests):
    transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as client:
      return await asyncio.gather(*(client.request(*args, **given) for args, given in requests))

  def many(self, requests):
    """The answers to (arguments, options) of httpx's `request`, asked all at once."""
    return asyncio.run(self._ask(requests))

  def __call__(self, method, path, **given):
    return self.many([((method, path), given)])[0]

  def post(self, path, content):
    return self("POST", path, json=content)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
  """Fewer and smaller shapes: compiling them is most of the time here."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (ranker, live_model, service):
      patch.setattr(module, "BATCHES", (1, 8))
    yield


@pytest.fixture(scope="module")
def workdir(blended, tmp_path_factory):
  """A blend, of a data set with keys; no test changes its artifacts."""
  path = tmp_path_factory.mktemp("service") / "run"
  shutil.copytree(blended, path)
  data = path / "synthetic"
  items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
  keyed = [json.dumps({**item, "key": f"I{n}"}) for n, item in enumerate(items, 1)]
  (data / "items.jsonl").write_text("\n".join(keyed) + "\n")
  users = len((data / "sequences.txt").read_text().splitlines())
  (data / "users.jsonl").write_text("".join(f'{{"key": "U{n}"}}\n' for n in range(1, users + 1)))
  return path


@pytest.fixture
def client(workdir):
  (workdir / "served_events.jsonl").unlink(missing_ok=True)
  client = Client(workdir)
  yield client
  client.service.close()


@pytest.fixture(scope="module")
def model(workdir):
  return Recommender.load(workdir)


def expected_items(model, history, top_k, repeat):
  (answer,) = model.recommend([history], TOP_K, repeat=repeat)  # compiled once
  return [recommendation_json(r) for r in answer[:top_k]]


def test_answers_are_those_of_the_model_at_any_concurrency(client, model):
  rng = np.random.default_rng(0)
  asked = []
  for _ in range(1000):
    history = rng.integers(1, 41, rng.choice([0, 1, 5, 20, 90])).tolist()
    asked.append((history, int(rng.integers(1, TOP_K + 1)), bool(rng.integers(2))))
  requests = [
    (("POST", "/recommend"), {"json": {"histories": [h], "top_k": k, "repeat": r, "reasons": True}})
    for h, k, r in asked
  ]
  at_once = itertools.cycle((1, 8, 64, LIMITS.queue - 1))
  answers = []
  while len(answers) < len(requests):
    answers += client.many(requests[len(answers) :][: next(at_once)])
  histories = [history for history, _, _ in asked]
  expected_lists = {r: model.recommend(histories, TOP_K, repeat=r) for r in (False, True)}
  for number, ((_, top_k, repeat), answer) in enumerate(zip(asked, answers, strict=True)):
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["answers"]
    expected = [recommendation_json(r) for r in expected_lists[repeat][number][:top_k]]
    assert [x["item"] for x in found["items"]] == [x["item"] for x in expected]
    for x, y in zip(found["items"], expected, strict=True):
      assert x["key"] == f"I{x['item']}" and x["title"]
      assert x["score"] == pytest.approx(y["score"], abs=2e-4)
      assert x["parts"] == pytest.approx(y["parts"], abs=2e-3)
  sizes = client.metrics.text().decode()
  (count,) = [
    float(x.split()[1]) for x in sizes.splitlines() if x.startswith("mmesid_batch_size_count")
  ]
  assert count < 700  # others waited while a batch was computed


def test_a_request_of_many_histories_keeps_their_order(client, model):
  histories = [[1, 2, 3], [5] * 90, [], [7, 8], [9] * 70]
  answer = client.post("/recommend", {"histories": histories, "top_k": 3})
  for history, found in zip(histories, answer.json()["answers"], strict=True):
    expected = expected_items(model, history, 3, False)
    assert [x["item"] for x in found["items"]] == [x["item"] for x in expected]
    assert all("parts" not in x for x in found["items"])


def test_items_and_users_have_ids_and_keys(client):
  by_id = client.post("/recommend", {"histories": [[3, 5]], "top_k": 3}).json()
  assert client.post("/recommend", {"histories": [["I3", "I5"]], "top_k": 3}).json() == by_id
  user = client.post("/recommend", {"users": [2], "top_k": 3}).json()
  assert client.post("/recommend", {"users": ["U2"], "top_k": 3}).json() == user
  history = client("GET", "/history?user=2").json()
  assert client("GET", "/history?key=U2").json()["items"] == history["items"]
  assert client.post("/recommend", {"histories": [history["items"]], "top_k": 3}).json() == user
  assert len(history["titles"]) == len(history["items"]) and all(history["titles"])
  newest = client("GET", "/history?key=U2&newest=2").json()
  assert newest["items"] == history["items"][-2:] and history["earlier"] == 0
  assert newest["earlier"] == len(history["items"]) - 2
  assert client("GET", "/history?key=U2&newest=0").status_code == 422


def test_events_count_at_once_and_after_a_new_start(client, workdir, model):
  before = client("GET", "/history?user=4").json()["items"]
  new = next(i for i in range(1, 41) if i not in before)
  assert client.post("/events", {"user": "U4", "items": [new, "I7"]}).json()["items"] == [
    *before,
    new,
    7,
  ]
  answer = client.post("/recommend", {"users": [4], "top_k": 5}).json()["answers"][0]["items"]
  expected = expected_items(model, [*before, new, 7], 5, False)
  assert [x["item"] for x in answer] == [x["item"] for x in expected]
  assert client.post("/events", {"user": "Zoe", "items": [1]}).json()["items"] == [1]
  assert client.post("/events", {"user": "Zoe", "items": [2]}).json()["items"] == [1, 2]
  client.service.close()
  with open(workdir / "served_events.jsonl", "ab") as journal:
    journal.write(b'{"user": "Zoe", "items": [3')  # killed before the answer
  again = Client(workdir)
  assert again("GET", "/history?key=Zoe").json()["items"] == [1, 2]
  assert again("GET", "/history?user=4").json()["items"] == [*before, new, 7]
  assert again.post("/events", {"user": "Zoe", "items": [4]}).json()["items"] == [1, 2, 4]
  again.service.close()
  with open(workdir / "served_events.jsonl", "ab") as journal:
    journal.write(b'{"user": "Zoe", "items": [41]}\n')  # an item that was added
  once_more = Client(workdir)
  assert once_more("GET", "/history?key=Zoe").json()["items"] == [1, 2, 4]
  once_more.service.close()


def part_of(client, history, item, part="transitions"):
  request = {"histories": [history], "top_k": TOP_K, "reasons": True}
  (answer,) = client.post("/recommend", request).json()["answers"]
  return {x["item"]: x["parts"][part] for x in answer["items"]}.get(item, 0)


def test_no_request_waits_for_the_compiler(client):
  """Any number of histories of any length has a program from the start."""
  programs = rank_items._cache_size(), _explain._cache_size()
  for length in (0, 1, 23, 24, 25, 31, 32, 64, 65, 100):
    for count in (1, 2, 5, 8):
      request = {"histories": [[1] * length] * count, "top_k": 3, "reasons": length % 2 == 0}
      assert client.post("/recommend", request).status_code == 200
  client.post("/events", {"user": "Ann", "items": [3, 4]})
  assert (rank_items._cache_size(), _explain._cache_size()) == programs


def test_events_of_one_user_count_for_the_others(client, workdir):
  """Item B comes up for those who had A, when many go from A to B; also after a new start."""
  a, b = 17, 33
  before = part_of(client, [a], b)
  for n in range(30):
    assert client.post("/events", {"user": f"new {n}", "items": [a, b]}).status_code == 200
  found = part_of(client, [a], b)
  assert found > before + 0.05
  client.service.close()
  again = Client(workdir)
  assert part_of(again, [a], b) == pytest.approx(found, abs=2e-3)
  again.service.close()


def test_counts_that_were_refreshed_are_not_added_to_again(workdir, tmp_path):
  path = shutil.copytree(workdir, tmp_path / "run")
  (path / "served_events.jsonl").unlink(missing_ok=True)
  client = Client(path)
  for n in range(30):
    client.post("/events", {"user": f"new {n}", "items": [17, 33]})
  client.service.close()
  refresh_counts(path, path / "synthetic")  # without these events
  again = Client(path)
  (answer,) = Recommender.load(path).recommend([[17]], TOP_K)
  before = part_of(again, [17], 33)
  assert before == pytest.approx(
    {r.item: r.parts["transitions"] for r in answer}.get(33, 0), abs=2e-3
  )
  for n in range(30):
    again.post("/events", {"user": f"newer {n}", "items": [17, 33]})
  assert (found := part_of(again, [17], 33)) > before + 0.05
  text = np.load(path / "synthetic" / "text.npy")[5].tolist()
  again.post("/items", {"items": [{"key": "N1", "vectors": {"text": text}}]})
  assert part_of(again, [17], 33) == pytest.approx(found, abs=2e-3)
  again.service.close()
  once_more = Client(path)  # what came after the counts were read is not forgotten
  assert part_of(once_more, [17], 33) == pytest.approx(found, abs=2e-3)
  once_more.service.close()


def test_a_new_item_comes_up_for_a_history_that_it_fits(client, workdir):
  """It has the text of a known item, so it comes up after the items that this one is like."""
  text = np.load(workdir / "synthetic" / "text.npy")
  new = {"key": "N1", "title": "A new one", "vectors": {"text": text[5].tolist()}}
  assert client.post("/recommend", {"histories": [[1]], "only_new": True}).status_code == 422
  added = client.post("/items", {"items": [new, {**new, "key": "N2"}]})
  assert added.json() == {"items": [41, 42]}
  request = {"histories": [["I5"], ["N1", 3]], "only_new": True, "top_k": 2}
  answers = client.post("/recommend", request).json()["answers"]
  assert [x["item"] for x in answers[0]["items"]] == [41, 42]
  assert [x["key"] for x in answers[1]["items"]] == ["N2"]  # the history holds the other
  assert answers[0]["items"][0]["title"] == "A new one"
  similar = client.post("/recommend", {"histories": [["I5"]], "top_k": 20, "reasons": True}).json()
  parts = {x["item"]: x["parts"] for x in similar["answers"][0]["items"]}
  assert {41, 42} & set(parts)
  assert client("GET", "/ready").json()["items"] == 42


def test_a_new_item_comes_by_its_texts(blended, tmp_path, monkeypatch):
  """Its vectors are those that `encode` made of the same texts."""
  path = tmp_path / "run"
  shutil.copytree(blended, path)
  data = path / "synthetic"
  client = Client(path)
  new = {"title": "Cedar bath soap", "fields": {"brand": "Fernhill", "categories": ["Beauty"]}}
  refused = client.post("/items", {"items": [new]})
  assert refused.json() == {"error": "items: texts cannot be encoded here; give vectors"}
  monkeypatch.setattr(tfidf_encoder, "WIDTH", np.load(data / "text.npy").shape[1])
  monkeypatch.setattr(tfidf_encoder, "LEAST_TEXTS", 1)  # for as many terms
  settings = {"data": data, "modality": "text", "model": None, "output": data / "text.npy"}
  encode_items(EncodeSettings(**settings, template="{title} {item_id}, {brand}", overwrite=True))
  item = json.loads((data / "items.jsonl").read_text().splitlines()[11])
  fields = {"title": item["title"], "fields": {"brand": item["brand"], "item_id": "12"}}
  assert client.post("/items", {"items": [fields]}).json() == {"items": [41]}
  (addition,) = client.service._additions
  text = np.load(data / "text.npy")[12]
  np.testing.assert_allclose(addition.vectors["text"], text[None], atol=1e-6)
  answer = client.post("/recommend", {"histories": [[12]], "only_new": True}).json()["answers"][0]
  assert [x["title"] for x in answer["items"]] == [item["title"]]
  some = client.post("/items", {"items": [fields, {"vectors": {"text": text.tolist()}}]})
  assert some.json()["error"].startswith("items: expected vectors of the same modalities")
  unknown = client.post("/items", {"items": [{"title": "xylophone"}]})
  assert unknown.json()["error"].startswith("items: item 1: the catalogue has none of the words")
  client.service.close()


def test_images_are_those_of_a_folder(client, tmp_path):
  assert client("GET", "/image?item=3").status_code == 404
  assert client("GET", "/ready").json()["images"] == 0
  png, svg = b"\x89PNG\r\n\x1a\n and so on", b"<svg onload='alert(1)'/>"
  for name, content in (("I3.png", png), ("I4.jpg", png), ("I5.png", svg), ("J6.png", png)):
    (tmp_path / name).write_bytes(content)
  os.mkfifo(tmp_path / "I7.png")
  with (tmp_path / "I8.png").open("wb") as file:
    file.write(png)
    file.truncate(images.MAX_BYTES + 1)
  client.service.images = images.Images(tmp_path, client.service.live.recommender)
  assert client("GET", "/ready").json()["images"] == 5
  for item in (3, 4):  # of the type that its bytes have
    answer = client("GET", f"/image?item={item}")
    assert answer.content == png and answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
  for item in (0, -1, 5, 6, 7, 8, 41, 10**30):
    answer = client("GET", f"/image?item={item}")
    assert answer.json() == {"error": f"item {item} has no image here"}, answer.status_code
  assert client("GET", "/image?item=x").status_code == 422


WRONG = [
  ({"histories": [[1, 2.5]]}, 422, "histories.0.1: Input should be a valid integer"),
  ({"histories": [1, 2]}, 422, "histories.0: Input should be a valid list"),
  ({"histories": [[True]]}, 422, "histories.0.0: "),
  ({"histories": [[0]]}, 422, "item 0 is not in the catalogue (1 to 40)"),
  ({"histories": [[10**30]]}, 422, f"item {10**30} is not in the catalogue (1 to 40)"),
  ({"histories": [["I99"]]}, 422, "item 'I99' is not known; expected one of 40 keys"),
  ({"histories": [[1] * 101]}, 422, "a history of 101 items; at most 100 are taken"),
  ({"histories": []}, 422, "0 histories; expected 1 to 256"),
  ({"histories": [[1]] * 201}, 429, "too many requests wait; ask again in a second"),
  ({"histories": [[1]] * 257}, 422, "257 histories; expected 1 to 256"),
  ({"histories": [[1]], "users": [1]}, 422, "expected one of histories and users"),
  ({}, 422, "expected one of histories and users"),
  ({"users": [99]}, 422, "user 99 is not known"),
  ({"users": [10**30]}, 422, f"user {10**30} is not known"),
  ({"users": ["U99"]}, 422, "user 'U99' is not known"),
  ({"histories": [[1]], "top_k": 0}, 422, "top_k: Input should be greater than or equal to 1"),
  ({"histories": [[1]], "top_k": 21}, 422, "top_k=21: at most 20 can be asked for"),
  ({"histories": [[1]], "k": 5}, 422, "k: Extra inputs are not permitted"),
  ({"histories": [[1]], "only_new": True}, 422, "only_new: no items were added to the catalogue"),
  ([], 422, "the body: Input should be a valid dictionary"),
]


@pytest.fixture(scope="module")
def refusing(workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp("refusing") / "run"
  shutil.copytree(workdir, path)
  (path / "served_events.jsonl").unlink(missing_ok=True)
  client = Client(path)
  yield client
  client.service.close()


@pytest.mark.parametrize("request_, status, text", WRONG, ids=lambda x: str(x)[:40])
def test_a_wrong_request_gets_one_sentence(refusing, request_, status, text):
  answer = refusing.post("/recommend", request_)
  assert answer.status_code == status
  assert set(answer.json()) == {"error"} and answer.json()["error"].startswith(text)
  assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
  "path, content, status, text",
  [
    ("/recommend", b'{"histories": [[1', 400, "the body is not JSON"),
    ("/recommend", b"\xff\xfe", 400, ""),
    ("/recommend", b"[" * 10_000, 400, ""),
    ("/recommend", b'{"users": [' + b"9" * 6000 + b"]}", 400, ""),
    ("/recommend", b'{"users": [' + b"1," * 20_000 + b"1]}", 413, "the body is larger than 20,000"),
    ("/events", b'{"user": "Zoe", "items": []}', 422, "items: List should have at least 1 item"),
    ("/events", b'{"user": 999, "items": [1]}', 422, "user 999 is not known; new users need a key"),
    ("/items", b'{"items": [{"vectors": {"text": [NaN]}}]}', 422, ""),
    ("/items", b'{"items": [{"vectors": {"text": [1, 2]}}]}', 422, ""),
    ("/items", b'{"items": [{"vectors": {"sound": [1, 2]}}]}', 422, ""),
    ("/items", b'{"items": [{"key": "I3", "vectors": {"text": [1]}}]}', 422, "items: the key 'I3'"),
    (
      "/items",
      b'{"items": [{"title": "\\ud83d", "vectors": {"text": [1]}}]}',
      422,
      "items.0.title: ",
    ),
    ("/events", b'{"user": "\\ud83d", "items": [1]}', 422, "user: "),
    ("/events", b'{"user": 1, "items": [' + b"1," * 1024 + b"1]}", 422, "items: List should have"),
    ("/items", b'{"items": [{"vectors": {}}]}', 422, "items: expected vectors of the same"),
    ("/items", b'{"items": [{"vectors": {"text": [1]}}, {"vectors": {"text": [1, 2]}}]}', 422, ""),
  ],
)
def test_a_wrong_body_gets_one_sentence(refusing, path, content, status, text):
  headers = {"Content-Type": "application/json"}
  answer = refusing("POST", path, content=content, headers=headers)
  assert answer.status_code == status, answer.text
  assert answer.json()["error"].startswith(text) and "Traceback" not in answer.text
  assert refusing.post("/recommend", {"histories": [[1]]}).status_code == 200


def test_other_paths_methods_and_kinds_of_content_are_refused(refusing):
  assert refusing("GET", "/nothing").status_code == 404
  assert refusing("GET", "/recommend").status_code == 405
  assert refusing("GET", "/history").json()["error"] == "expected one of user and key"
  assert refusing("GET", "/history?user=x").status_code == 422
  form = refusing("POST", "/events", content=b'{"user": 1, "items": [1]}')
  assert form.status_code == 415 and "Content-Type: application/json" in form.json()["error"]


def test_what_waits_too_long_is_refused(workdir):
  client = Client(workdir, Limits(seconds=-1, items=LIMITS.items, top_k=TOP_K))
  answer = client.post("/recommend", {"histories": [[1]]})
  assert answer.status_code in (408, 503) and set(answer.json()) == {"error"}
  client.service.close()


def test_with_a_token_only_its_owner_may_ask(workdir):
  client = Client(workdir, token="secret")
  request = {"json": {"histories": [[1]]}}
  for headers in ({}, {"Authorization": "Bearer secret2"}, {"Authorization": "secret"}):
    answer = client("POST", "/recommend", headers=headers, **request)
    assert answer.status_code == 401 and "Bearer" in answer.json()["error"]
    paths = set(client.app._app._app.openapi()["paths"]) - {"/health", "/ready"}
    assert {client("POST", path, headers=headers).status_code for path in paths} == {401}
    assert client("GET", "/docs", headers=headers).status_code == 401
  headers = {"Authorization": "Bearer secret"}
  assert client("POST", "/recommend", headers=headers, **request).status_code == 200
  assert all(client("GET", path).status_code == 200 for path in ("/health", "/ready", "/"))
  client.service.close()


@pytest.mark.parametrize("host, status", [("localhost:80", 200), ("[::1]:80", 200), ("shop", 421)])
def test_a_local_service_is_asked_by_its_own_name_alone(refusing, host, status):
  app = create_app(refusing.service, refusing.metrics, local_only=True)
  request = {"json": {"histories": [[1]]}, "headers": {"Host": host}}
  transport = httpx.ASGITransport(app)

  async def ask():
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
      return await client.post("/recommend", **request)

  assert asyncio.run(ask()).status_code == status


def test_a_full_disk_leaves_no_half_line(client, workdir, monkeypatch):
  journal = workdir / "served_events.jsonl"
  before = journal.read_bytes()

  def write_a_part(file, content):
    file.write(content[:5])
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as full:
    full.setattr(users, "append_bytes", write_a_part)
    answer = client.post("/events", {"user": 1, "items": [1]})
  assert answer.status_code == 500 and "space" not in answer.text
  assert journal.read_bytes() == before
  assert client.post("/events", {"user": 1, "items": [2]}).json()["items"][-1] == 2


def test_one_service_at_a_time_writes_events(client, workdir):
  with pytest.raises(Exception, match="another service of this workdir is running"):
    Client(workdir)


def test_figures_and_descriptions_are_there(refusing):
  refusing.post("/recommend", {"histories": [[1]]})
  figures = refusing("GET", "/metrics").text
  assert 'mmesid_requests_total{path="/recommend",status="200"}' in figures
  described = refusing("GET", "/openapi.json").json()
  assert {"/recommend", "/events", "/items", "/history"} <= set(described["paths"])
  assert described["components"]["schemas"]["Recommend"]["examples"]
  page = refusing("GET", "/")
  assert "default-src 'none'" in page.headers["content-security-policy"]
  assert "http://" not in page.text and "https://" not in page.text  # nothing from elsewhere


def test_events_after_another_data_set_are_refused(workdir):
  journal = workdir / "served_events.jsonl"
  journal.write_text('{"dataset": "another"}\n')
  with pytest.raises(Exception, match="holds events after another data set"):
    Client(workdir)
  journal.write_text("not JSON\n")
  with pytest.raises(Exception, match="served_events.jsonl:1: is not an event of the service"):
    Client(workdir)
  journal.unlink()
