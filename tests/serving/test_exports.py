"""Exports that run elsewhere: vectors for an index, and the model as a jax.export artifact."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from commands import refused, run

from mmesid_jax.errors import UserError
from mmesid_jax.serving.index_vectors import write_index
from mmesid_jax.serving.jax_export import write_exported
from mmesid_jax.serving.ranker import Ranker
from mmesid_jax.serving.recommender import Recommender

HISTORIES = [[1, 2, 3], [], [7, 8, 9, 10, 11, 3, 5, 2], [40]]
NOT_IN_PRODUCTS = ("transitions", "repeats", "reranking")


@pytest.fixture(scope="module", params=["network", "blend"])
def model(request, blended) -> Recommender:
  return Recommender.load(blended, model=request.param)


def test_a_product_of_vectors_is_the_score_without_what_is_no_product(model, tmp_path):
  write_index(model, tmp_path / "index")
  item_NV, user_UV = (np.load(tmp_path / "index" / f"{name}.npy") for name in ("items", "users"))
  names = {n: pl.read_parquet(tmp_path / "index" / f"{n}.parquet") for n in ("items", "users")}
  assert item_NV.dtype == user_UV.dtype == np.float32
  assert names["items"]["id"].to_list() == list(range(1, 41))
  assert names["items"]["title"].to_list() == model.titles[1:]
  dataset = model.workdir.dataset
  assert names["users"]["id"].to_list() == dataset.users.tolist()
  product_UN = user_UV @ item_NV.T
  rows = range(0, len(dataset), 7)
  answers = model.recommend([dataset.sequence(row) for row in rows], 40, repeat=True)
  for row, answer in zip(rows, answers, strict=True):
    for r in answer:
      rest = sum(r.parts.get(source, 0) for source in NOT_IN_PRODUCTS)
      assert product_UN[row, r.item - 1] == pytest.approx(r.score - rest, abs=2e-4)
  assert set(NOT_IN_PRODUCTS) & set(model.sources) == (
    {"transitions", "repeats"} if model.kind == "blend" else set()
  )


def test_an_empty_history_has_the_vector_of_the_network_alone(model):
  (query_V,) = model.static_queries([[]])
  (answer,) = model.recommend([[]], 40)
  product_I = model.static_table() @ query_V
  for r in answer:
    assert product_I[r.item] == pytest.approx(r.score, abs=1e-5)


BARE = """
import pathlib, sys, jax, numpy as np
folder = sys.argv[1]
with open(f"{folder}/model.jax_export", "rb") as file:
  model = jax.export.deserialize(file.read())
weights = {file.stem: np.load(file) for file in pathlib.Path(folder, "weights").glob("*.npy")}
for name, repeat in (("kept", True), ("left_out", False)):
  items, scores = model.call(weights, np.load(f"{folder}/asked.npy"), np.array(repeat))
  np.savez(f"{folder}/{name}.npz", items=items, scores=scores)
assert not any(name.startswith(("mmesid", "flax")) for name in sys.modules)
"""


def test_the_exported_model_runs_with_jax_alone(model, tmp_path):
  """In an interpreter that cannot find this package: isolated, from another folder."""
  output = tmp_path / "jax"
  write_exported(model, output, batch=len(HISTORIES), history=20, top_k=38)
  asked = np.zeros((len(HISTORIES), 20), np.int32)
  for row, history in zip(asked, HISTORIES, strict=True):
    row[: len(history)] = history
  np.save(output / "asked.npy", asked)
  command = [sys.executable, "-I", "-c", BARE, str(output)]
  subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
  for name, repeat in (("kept", True), ("left_out", False)):
    found, expected = np.load(output / f"{name}.npz"), model.top_items(HISTORIES, 38, repeat=repeat)
    finite = np.isfinite(expected.score_EA)
    np.testing.assert_array_equal(np.isfinite(found["scores"]), finite)
    np.testing.assert_array_equal(found["items"][finite], expected.item_EA[finite])
    np.testing.assert_allclose(
      found["scores"][finite], expected.score_EA[finite], rtol=1e-5, atol=1e-5
    )
  about = json.loads((output / "export.json").read_text())
  assert about["model"] == model.kind and about["platforms"] == ["cpu", "cuda", "rocm", "tpu"]


def test_mistakes_of_exports_are_one_line(blended, tmp_path):
  export = ("export", f"--workdir={blended}", f"--output={tmp_path}/out")
  assert "--top_k: --format=index takes none" in refused(*export, "--format=index", "--top_k=3")
  assert "--batch: --format=transformers takes none" in refused(*export, "--batch=3")
  line = refused(*export, "--format=jax", "--max_history=33")
  assert "--max_history=33: expected 1 to " in line
  sizes = {"batch": 1, "history": 5, "top_k": 41}
  with pytest.raises(UserError, match="top_k=41: expected a number from 1 to 40"):
    write_exported(Ranker.load(blended), tmp_path / "out", **sizes)
  assert not (tmp_path / "out").exists()
  for kind in ("index", "jax"):
    command = (*export[:2], f"--output={tmp_path}/{kind}", f"--format={kind}", "--model=network")
    status, out, err = run(*command)
    assert status == 0, err
    assert str(tmp_path / kind) in out
  assert "exists already; name a new directory" in refused(*command)
