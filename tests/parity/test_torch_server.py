"""The PyTorch server that the service is measured beside answers as the service does."""

import asyncio
import functools
import json
import pathlib
import shutil

import httpx
import jax
import numpy as np
import pytest
from commands import benchmark

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import TRAINED
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.models import blend
from mmesid_jax.models.layers.reranker import RerankerParams
from mmesid_jax.service.app import create_app
from mmesid_jax.service.prometheus import Metrics
from mmesid_jax.service.service import Limits, Service
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.blend_stage import load_blend

pytestmark = pytest.mark.parity
pytest.importorskip("torch")
torch_server = pytest.importorskip("torch_server")

ITEMS, TOP_K = 40, 20


def histories() -> list[list[int]]:
  """An empty one, those longer than a row and than evidence looks back, and items that recur."""
  rng = np.random.default_rng(0)
  return [rng.integers(1, ITEMS + 1, n).tolist() for n in (0, 1, 1, 2, 5, 9, 20, 31, 32, 40, 70)]


def ask(app) -> list[list[dict]]:
  async def post():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as client:
      asked = ({"histories": [history], "top_k": TOP_K} for history in histories())
      return [await client.post("/recommend", json=body) for body in asked]

  return [answer.json()["answers"][0]["items"] for answer in asyncio.run(post())]


def compare(path, model):
  load = functools.partial(Recommender.load, path, model=model)
  service = Service(path, load, Limits(top_k=TOP_K))
  ours = ask(create_app(service, Metrics(), None))
  service.close()
  theirs = ask(torch_server.create_app(path, model, 1))
  assert len(ours[1]) == TOP_K and len({str(x) for x in ours}) > 5
  for pair in zip(ours, theirs, strict=True):
    assert torch_server.find_difference(*pair) is None


def enlarge_weights(path):
  """So that positions matter: after little training, all tokens are seen about equally."""
  tensors, header = read_artifact(path / "recommender.safetensors", "recommender")
  backbone = [n for n in tensors if "backbone.blocks" in n and n.endswith("weight")]
  changed = {name: 4 * tensors[name] for name in backbone}
  write_artifact(path / "recommender.safetensors", {**tensors, **changed}, header)


@pytest.mark.parametrize("preset", ["best", "paper"])
def test_the_network_gives_the_same_items(preset, tiny, tmp_path):
  """With several layers, prompt and response tokens, and heads of keys that are shared."""
  sizes = {"layers": 2, "heads": 2, "kv_heads": 1, "prompt.length": 3, "prompt.response": 2}
  changes = {f"recommender.{name}": n for name, n in {**sizes, "state_scale": 5.0}.items()}
  pipeline.run_pipeline(tiny(preset, {"stages": TRAINED, **changes}), tmp_path)
  enlarge_weights(tmp_path)
  compare(tmp_path, "network")


@pytest.fixture
def few_candidates(monkeypatch):
  for module in (blend, torch_server.torch_blend):
    monkeypatch.setattr(module, "CANDIDATES", 12)  # fewer than TOP_K
  jax.clear_caches()  # CANDIDATES is read when a program is traced
  yield
  jax.clear_caches()


@pytest.mark.parametrize("reranked", [False, True])
def test_the_blend_gives_the_same_items(reranked, blended, tmp_path, few_candidates):
  path = pathlib.Path(shutil.copytree(blended, tmp_path / "run"))
  tensors, header = read_artifact(path / "blend.safetensors", "blend")
  F, H, rng = load_blend(path, read_config(path)).num_features, 4, np.random.default_rng(0)
  shapes = [F], [F], [], [F], [F, H], [H], [H]
  if reranked:
    for name, shape in zip(RerankerParams._fields, shapes, strict=True):
      tensors[f"reranker.{name}"] = rng.normal(size=shape).astype(np.float32)
    write_artifact(path / "blend.safetensors", tensors, header)
  compare(path, "blend")


def test_a_difference_is_one_beyond_ties():
  ours = [{"item": i, "score": s} for i, s in ((3, 2.0), (1, 1.0), (2, 0.5), (9, 0.2))]
  swapped = [ours[0], ours[2] | {"score": 0.9995}, ours[1], ours[3]]
  for theirs, found in (
    (ours, None),
    ([*ours[:3], {"item": 8, "score": 0.2004}], None),  # a tie at the end
    ([*ours[:3], {"item": 8, "score": 0.3}], "item 9: 0.2000 and 0.3000"),
    (swapped, "item 2: 0.5000 and 0.9995"),
    (ours[:3], "4 and 3 items"),
  ):
    assert torch_server.find_difference(ours, theirs) == found


def test_the_command_measures_both(blended, tmp_path):
  flags = ("--beside=torch", "--clients=1,3", "--seconds=0.5", "--rounds=2")
  done = benchmark("serving", f"--workdir={blended}", f"--output={tmp_path}", *flags)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "the same items from all servers" in done.stdout and "ours is" in done.stdout
  figures = json.loads((tmp_path / "serving.json").read_text())
  for load in (figures["load"], *figures["beside"].values()):
    assert list(load) == ["1", "3"] and all(len(found["rates"]) == 2 for found in load.values())
  assert "torch, threads=1" in figures["beside"]
