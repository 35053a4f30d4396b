"""What recommender.codes promises of the code tables: where they start, and whether they move."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax import pipeline
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.reports import export_backbone
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.workdir import reopen_workdir

ROWS, D = 6, 4


def encoder(**options) -> ItemEncoder:
  rng = np.random.default_rng(0)
  return ItemEncoder(
    {"text": rng.normal(size=(ROWS, 3)).astype(np.float32)},
    {"text": rng.integers(2, size=(ROWS, 2))},
    {"text": rng.normal(size=(2, 2, D)).astype(np.float32)},
    D=D,
    kind="tied",
    rngs=nnx.Rngs(0),
    **options,
  )


def test_frozen_codes_are_read_alike_and_are_no_parameters():
  frozen, trained, item = encoder(frozen_codes=True), encoder(), jnp.arange(ROWS)
  np.testing.assert_array_equal(frozen(item), trained(item))

  def total(items):
    return items(item).sum()

  slope = nnx.grad(total)(trained)
  assert np.abs(slope.codebook_LCD["text"][...]).max() > 0
  assert "codebook_LCD" not in nnx.grad(total)(frozen)
  assert "identity_ID" in nnx.grad(total)(frozen)


@pytest.mark.parametrize(
  ("codes", "whiten", "moves"),
  [("frozen", 8, False), ("frozen", 0, False), ("codebooks", 0, True), ("random", 8, True)],
)
def test_code_tables_move_unless_they_are_frozen(workdir, tiny, tmp_path, codes, whiten, moves):
  changes = {"recommender.codes": codes, "recommender.whiten": whiten, "recommender.epochs": 1}
  config = tiny(changes=changes)
  pipeline.run_pipeline(config, workdir, overwrite=True)
  _, start = recommender_stage.read_codes(reopen_workdir(workdir))
  learned, _ = read_artifact(workdir / "recommender.safetensors", "recommender")
  quantised, _ = read_artifact(workdir / "semantic_ids.safetensors", "semantic_ids")
  for m, book_LCD in start.items():
    moved = np.abs(learned[f"model.items.codebook_LCD.{m}"] - book_LCD).max()
    assert moved > 1e-4 if moves else moved == 0
    as_quantised = np.array_equal(book_LCD, quantised[f"codebooks.{m}"])
    assert as_quantised == (codes != "random" and not whiten)
  if codes == "frozen" and whiten:
    assert len(Recommender.load(workdir).recommend([[1, 2]], top_k=3)[0]) == 3
    export_backbone.export_backbone(workdir, tmp_path / "export")
