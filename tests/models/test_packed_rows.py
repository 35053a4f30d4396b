"""Shared-prefix rows are an optimization: one target a row, alone, is the oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data.batches import batch_pieces, batch_sequences
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.history_pieces import training_pieces
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.packed_rows import visibility_mask, window_mask
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.models.sequence_recommender import RecommenderModel

ITEMS = 40
D = 16


def recommender(S: int, kind: str = "mlp", **parts) -> RecommenderModel:
  rng = np.random.default_rng(0)
  features = {m: rng.normal(size=(ITEMS + 1, 5)).astype(np.float32) for m in ("a", "b")}
  codes = {m: rng.integers(0, 4, (ITEMS + 1, 3)).astype(np.int32) for m in features}
  books = {m: rng.normal(size=(3, 4, D)).astype(np.float32) for m in features}
  rngs = nnx.Rngs(0)
  items = ItemEncoder(features, codes, books, D=D, kind=kind, rngs=rngs)
  gates = FrequencyFusion(np.arange(ITEMS + 1), 2, kind="frequency", temperature=1.0, rngs=rngs)
  backbone = LlamaConfig(layers=2, D=D, F=24, N=4, K=2, H=6, **parts)
  return RecommenderModel(items, gates, backbone, P=3, S=S, item_dropout=0.0, rngs=rngs)


def test_scales_of_tokens_and_states_are_those_of_the_vectors():
  """Small tokens are those of small tables; response tokens keep theirs."""
  plain, small, scaled = (recommender(S=2, kind="tied") for _ in range(3))
  scaled.token_scale, scaled.state_scale = 0.01, 0.5
  for variable in jax.tree.leaves(
    nnx.state(small.items, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)
  ):
    variable.set_value(0.01 * variable[...])
  (batch,) = batch_sequences(histories([7, 4]), Layout(1, 40, 12, 2))
  expected = 0.5 * hidden(small, batch)
  np.testing.assert_allclose(hidden(scaled, batch), expected, rtol=1e-5, atol=1e-6)
  assert np.abs(hidden(plain, batch) * 0.5 - expected).max() > 0.01
  np.testing.assert_array_equal(scaled.item_vectors(), plain.item_vectors())


def histories(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, ITEMS + 1, n) for n in lengths]


@nnx.jit
def batch_loss_and_gradient(model, batch):
  def loss(model):
    return cross_entropy(model.scores(model.hidden(batch)), batch.target_Q, batch.weight_Q)[0]

  return nnx.value_and_grad(loss)(model)


@nnx.jit
def hidden(model, batch):
  return model.hidden(batch)


def loss_and_gradient(model, batches):
  """Summed over batches; sums over targets, so that how they are batched does not matter."""
  parts = [batch_loss_and_gradient(model, batch) for batch in batches]
  return jax.tree.map(lambda *x: sum(x), *parts)


def alone(sequences, layout, keep=None):
  """One sample per target: its own prefix, its own row, nothing else in the batch."""
  layout = dataclasses.replace(layout, rows=1, targets=1)
  prefixes = [s[: t + 1] for s in sequences for t in range(len(s)) if keep is None or keep(s, t)]
  return list(batch_sequences(prefixes, layout, [len(p) - 1 for p in prefixes]))


def assert_equal(model, packed, single):
  loss, gradient = loss_and_gradient(model, packed)
  oracle_loss, oracle_gradient = loss_and_gradient(model, single)
  np.testing.assert_allclose(loss, oracle_loss, rtol=1e-5)
  leaves, oracle_leaves = jax.tree.leaves(gradient), jax.tree.leaves(oracle_gradient)
  scale = max(float(jnp.abs(g).max()) for g in oracle_leaves)
  for ours, oracle in zip(leaves, oracle_leaves, strict=True):
    np.testing.assert_allclose(ours, oracle, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("S", [0, 1, 3])
@pytest.mark.parametrize("kind", ["mlp", "tied", "untied"])
def test_packed_loss_and_gradient_equal_one_sample_per_target(S, kind):
  model = recommender(S, kind)
  sequences = histories([1, 2, 5, 1, 7, 3])
  packed = list(batch_sequences(sequences, Layout(rows=2, row_length=48, targets=32, response=S)))
  assert sum(int((b.segment_RT.max(1) > 1).any()) for b in packed), "no row holds several users"
  assert_equal(model, packed, alone(sequences, Layout(1, 48, 1, S)))


@pytest.mark.parametrize("S", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_long_users_pack_as_one_sample_per_target(S):
  """Users of 1, 2, 5, 50 and 204 items; the oracle's rows are 204 tokens long."""
  model = recommender(S)
  sequences = histories([50, 1, 204, 2, 5])
  packed = list(batch_sequences(sequences, Layout(rows=1, row_length=800, targets=300, response=S)))
  assert len(packed) == 1
  assert_equal(model, packed, alone(sequences, Layout(1, 204 + S, 1, S)))


@pytest.mark.parametrize("S", [0, 2])
def test_a_user_cut_at_the_row_s_end_scores_as_its_pieces_alone(S):
  """A cut piece starts at some item; the oracle's prefixes start at the same one."""
  model = recommender(S)
  sequences = histories([4, 60, 3])
  offsets = np.cumsum([0, *(len(s) + 2 for s in sequences)])
  items = np.concatenate([np.append(s, [1, 1]) for s in sequences]).astype(np.int32)
  dataset = Dataset(items, offsets, np.arange(1, 4), ITEMS, "", None)
  layout = Layout(rows=2, row_length=32, targets=40, response=S)
  pieces, counts = training_pieces(dataset, layout)
  assert counts.cut_users == 1 and (pieces.start > 0).any()
  single_layout = dataclasses.replace(layout, rows=1, targets=1)
  prefixes = [
    dataset.sequence(user)[start : t + 1]
    for user, start, stop, first in zip(*pieces, strict=True)
    for t in range(first, stop)
  ]
  single = list(batch_sequences(prefixes, single_layout, [len(p) - 1 for p in prefixes]))
  packed = list(batch_pieces(dataset, pieces, layout))
  assert sum(int(b.weight_Q.sum()) for b in packed) == sum(map(len, sequences))
  assert_equal(model, packed, single)


@settings(max_examples=10, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
  row_length=st.sampled_from([40, 64]),
  S=st.sampled_from([0, 2]),
)
def test_every_target_scores_as_if_it_were_alone(lengths, row_length, S):
  model = recommender(S)
  sequences = histories(lengths, seed=len(lengths))
  packed = list(batch_sequences(sequences, Layout(3, row_length, 40, S)))
  single = alone(sequences, Layout(1, row_length, 1, S))
  seen = [
    (int(b.piece_Q[q]), int(b.target_Q[q])) for b in packed for q in np.flatnonzero(b.weight_Q)
  ]
  assert seen == [
    (u, int(i)) for u, s in enumerate(sequences) for i in s
  ]  # nobody lost, nobody twice
  o_packed = np.concatenate([hidden(model, b)[b.weight_Q > 0] for b in packed])
  o_single = np.concatenate([hidden(model, b)[b.weight_Q > 0] for b in single])
  np.testing.assert_allclose(o_packed, o_single, atol=2e-5)


@pytest.mark.parametrize("S", [0, 2])
@pytest.mark.parametrize("window", [2, 6])
def test_a_window_is_counted_in_the_positions_of_a_target_alone(S, window):
  """Not in places of the row, where other targets' branches stand between. The prompt has 3 tokens,
  so 2 is too few for it, and 6 reaches into it from the first items."""
  model = recommender(S, window=window)
  sequences = histories([12, 1, 7])
  packed = list(batch_sequences(sequences, Layout(2, 64, 32, S)))
  single = alone(sequences, Layout(1, 16, 1, S))
  o_packed = np.concatenate([hidden(model, b)[b.weight_Q > 0] for b in packed])
  o_single = np.concatenate([hidden(model, b)[b.weight_Q > 0] for b in single])
  np.testing.assert_allclose(o_packed, o_single, atol=2e-5)


@given(
  lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
  S=st.integers(0, 3),
  prompt=st.integers(1, 6),
  window=st.integers(1, 16),
)
def test_the_window_leaves_what_it_leaves_to_every_target_alone(lengths, S, prompt, window):
  """By brute force: positions are written down token by token, as if nobody else were there."""
  (batch,) = batch_sequences(histories(lengths), Layout(1, 160, 40, S))
  position_T = []
  for length in lengths:
    position_T += list(range(length - 1))
    position_T += [target + s for target in range(length) for s in range(S)]
  expected = np.zeros((len(position_T), prompt + len(position_T)), bool)
  for q, place in enumerate(position_T):
    for k, other in enumerate([*range(-prompt, 0), *position_T]):
      expected[q, k] = other > place - window
  found = np.asarray(window_mask(batch.position_RT, prompt, window))[0]
  np.testing.assert_array_equal(found[: len(position_T), : expected.shape[1]], expected)


@pytest.mark.parametrize("S", [0, 2])
@pytest.mark.parametrize("window", [None, 2])
def test_no_target_depends_on_later_items_or_on_other_users(S, window):
  """The gradient of one target's loss with respect to every token's vector says what it has seen:
  with a window, in two layers, twice as far as in one."""
  model = recommender(S, window=window)
  first, second = np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8])
  (batch,) = batch_sequences([first, second], Layout(1, 40, 16, S))

  item_ND = model.items(batch.item_E)

  def states(item_ND):
    fed = nnx.merge(*nnx.split(model))
    fed.items = lambda item: item_ND
    return fed.hidden(batch).sum(1)

  jacobian_QND = jax.jit(jax.jacrev(states))(item_ND)
  for q in np.flatnonzero(batch.weight_Q):
    touched_N = np.abs(jacobian_QND[q]).sum(1) > 0
    seen = set(batch.item_E[np.flatnonzero(touched_N)].tolist())
    user = first if batch.piece_Q[q] == 0 else second
    target = user.tolist().index(batch.target_Q[q])
    first_seen = 0 if window is None else target - 1 + S - 2 * (window - 1)
    before = user[:target][max(first_seen, 0) :]
    assert seen == set(before.tolist()), f"target {batch.target_Q[q]}"


@pytest.mark.parametrize("S", [0, 2])
def test_the_mask_is_causal_with_the_token_itself(S):
  """As in every causal transformer: a token's keys are those up to its own, the newest item's among
  them, and for a response token the items before its target and its branch up to itself."""
  (batch,) = batch_sequences([np.array([1, 2, 3]), np.array([4, 5])], Layout(1, 16, 8, S))
  lengths, tokens = (3, 2), []  # of every token: its user, its place in the trunk or its branch
  for user, length in enumerate(lengths):
    tokens += [(user, "trunk", n) for n in range(length - 1)]
    tokens += [(user, target, s) for target in range(length) for s in range(S)]

  def sees(query, key):
    (user, branch, place), (key_user, key_branch, key_place) = query, key
    if user != key_user:
      return False
    if key_branch == "trunk":
      return key_place <= place if branch == "trunk" else key_place < branch
    return branch == key_branch and key_place <= place

  expected = np.zeros((16, 16), bool)
  for q, query in enumerate(tokens):
    expected[q, : len(tokens)] = [sees(query, key) for key in tokens]
  mask_RTY = np.asarray(visibility_mask(batch, prompt=3))
  assert mask_RTY[0, :, :3].all()
  np.testing.assert_array_equal(mask_RTY[0, :, 3:], expected)


def test_sasrec_reads_packed_rows_as_single_ones():
  model = SASRec(ITEMS, D=D, layers=2, heads=2, positions=32, rate=0.5, rngs=nnx.Rngs(0))
  sequences = histories([2, 5, 9])
  first = [1, 1, 1]
  packed = list(batch_sequences(sequences, Layout(1, 32, 20), first))
  assert_equal(model, packed, alone(sequences, Layout(1, 32, 1), lambda s, t: t > 0))
