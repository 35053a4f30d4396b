"""Lists and coverage against a loop over users and items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.evaluation.evaluator import NEVER, Evaluator, summarize_ranking
from mmesid_jax.evaluation.ranking import PROTOCOLS, top_items
from mmesid_jax.models.catalogue_scores import ProductScores
from mmesid_jax.parallel.mesh import make_mesh, use_mesh

ITEMS, LENGTH, WIDTH = 23, 6, 3


class LastItem(ProductScores, nnx.Module):
  """Scores by the dot product with the newest item."""

  num_items = ITEMS

  def __init__(self, x_ID):
    self.x_ID = nnx.Param(jnp.asarray(x_ID))

  def hidden(self, batch, key=None):
    x_XD = self.x_ID[...][batch.item_E[batch.slot_RT]].reshape(-1, WIDTH)
    return jnp.concatenate([jnp.zeros((1, WIDTH)), x_XD])[batch.read_Q]

  def item_vectors(self):
    return self.x_ID[...]


@pytest.fixture
def dataset(tmp_path):
  rng = np.random.default_rng(0)
  lines = [
    f"{u} " + " ".join(map(str, rng.permutation(ITEMS)[: rng.integers(3, 21)] + 1))
    for u in range(1, 9)
  ]
  lines.append(f"9 {' '.join(map(str, range(1, ITEMS + 1)))}")  # every item is in the file
  (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
  return prepare_dataset(tmp_path, tmp_path / "cache")


def walked(dataset, score, length):
  """protocol -> the best place of every item in any user's list, one user after the other."""
  best = {protocol: [NEVER] * ITEMS for protocol in PROTOCOLS}
  for u in range(len(dataset)):
    *history, _ = dataset.sequence(u).tolist()
    for protocol in PROTOCOLS:
      left = [i for i in range(1, ITEMS + 1) if protocol == "unmasked" or i not in history]
      shown = sorted(left, key=lambda i: (-score(history)[i], i))[:length]
      for place, item in enumerate(shown, 1):
        best[protocol][item - 1] = min(best[protocol][item - 1], place)
  return best


@pytest.mark.parametrize("length", [LENGTH, 1_000])
def test_places_are_those_of_every_users_list(dataset, length):
  x_ID = np.random.default_rng(1).normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)
  evaluator = Evaluator(dataset, Layout(2, 8, 4), "test")  # batches with unused targets
  ranking = evaluator.model_ranking(LastItem(x_ID), length)
  expected = walked(dataset, lambda history: np.float64(x_ID) @ x_ID[history[-1]], length)
  for protocol in PROTOCOLS:
    assert ranking.place_E[protocol].tolist() == expected[protocol]
  found = summarize_ranking(ranking, (2, LENGTH), resamples=0, seed=0)
  for protocol in PROTOCOLS:
    share = np.mean(np.array(expected[protocol]) <= 2)
    assert found[protocol]["coverage@2"] == {"mean": share} and share > 0
  plain = evaluator.model_ranking(LastItem(x_ID))
  assert plain.place_E == {}
  jax.tree.map(np.testing.assert_array_equal, plain.rank_U, ranking.rank_U)
  assert "coverage@2" not in summarize_ranking(plain, (2,), resamples=0, seed=0)["masked"]


@pytest.mark.parametrize("split, held_out", [("valid", 2), ("test", 1)])
def test_the_newest_item_of_the_history_is_left_out_too(dataset, split, held_out):
  """MME-SID masks the items of the history, which is everything before the target. A model that
  scores the newest one above the target, and all others below, ranks it first, or second."""
  evaluator = Evaluator(dataset, Layout(2, 8, 4), split)
  for u in range(len(dataset)):
    score_I = np.zeros(ITEMS + 1, np.float32)
    score_I[dataset.sequence(u)[-held_out]] = 1
    score_I[dataset.sequence(u)[-held_out - 1]] = 2
    ranks = evaluator.fixed_ranks(score_I)
    assert (ranks["masked"][u], ranks["unmasked"][u]) == (1, 2)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("row_length", [1, 8, 64])
def test_batches_hold_the_whole_history_of_every_user(dataset, row_length, narrow):
  evaluator = Evaluator(dataset, Layout(2, row_length, 4), "valid", narrow=narrow)
  found = {}
  for batch in evaluator.batches():
    history_QX = batch.history_QX
    longest = (history_QX > 0).sum(1).max()
    assert history_QX.shape == (4, 1 << int(longest - 1).bit_length() if narrow else 32)
    for past_X, user, target in zip(history_QX, batch.piece_Q, batch.target_Q, strict=True):
      if user < 0:
        assert not past_X.any() and target == 0
      else:
        found[int(user)] = [int(target), *past_X[past_X > 0]]
  expected = {u: dataset.sequence(u)[-2::-1].tolist() for u in range(len(dataset))}
  assert found == expected


def test_a_mesh_gives_the_same_places(dataset):
  x_ID = np.random.default_rng(1).normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)
  expected = walked(dataset, lambda history: np.float64(x_ID) @ x_ID[history[-1]], LENGTH)
  with use_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
    ranking = Evaluator(dataset, Layout(2, 8, 4), "test").model_ranking(LastItem(x_ID), LENGTH)
  for protocol in PROTOCOLS:
    assert ranking.place_E[protocol].tolist() == expected[protocol]


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2}, {"fsdp": 5}], ids=str)
def test_popularity_shows_everybody_the_same(dataset, axes):
  """Also on a mesh that does not divide the items: their scores are no table that is padded."""
  score_I = np.random.default_rng(2).integers(0, 3, ITEMS + 1).astype(np.float32)  # with ties
  with use_mesh(make_mesh(**axes)):
    ranking = Evaluator(dataset, Layout(2, 8, 4), "test").fixed_ranking(score_I, LENGTH)
  expected = walked(dataset, lambda history: score_I, LENGTH)
  for protocol in PROTOCOLS:
    assert ranking.place_E[protocol].tolist() == expected[protocol]
  assert (ranking.place_E["unmasked"] != NEVER).sum() == LENGTH


def test_lists_hold_no_padding_no_fill_and_no_nan():
  """Columns: padding, four items, two rows that fill up; item 3 has no score, user 0 had item 1."""
  score_QI = jnp.array([[99, 1, 2, jnp.nan, 4, 99, 99]] * 2, jnp.float32)
  masked_QK, unmasked_QK = top_items(score_QI, jnp.array([[1, 0], [0, 0]]), 5, num_items=4)
  assert unmasked_QK.tolist() == [[4, 2, 1, 0, 0]] * 2
  assert masked_QK.tolist() == [[4, 2, 0, 0, 0], [4, 2, 1, 0, 0]]
