"""Geometry against scipy and against tables whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.evaluation import geometry
from mmesid_jax.evaluation.geometry import effective_rank, kendall_tau, principal_plane, spectrum


@pytest.fixture
def dataset(tmp_path):
  rng = np.random.default_rng(0)
  lines = [f"{u} " + " ".join(map(str, rng.integers(1, 31, size=3 + u))) for u in range(1, 12)]
  (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
  return prepare_dataset(tmp_path, tmp_path / "cache")


def table(width, seed, num_items=30):
  x = np.random.default_rng(seed).normal(size=(num_items + 1, width)).astype(np.float32)
  x[0] = np.nan  # padding is never looked at
  return x


def test_tau_is_scipys_mean_over_users(dataset):
  original, other = table(5, 1), table(3, 2)
  expected = []
  for u in range(len(dataset)):
    *history, target = dataset.sequence(u)
    items = np.unique(history)
    if len(items) > 1:
      distances = [np.linalg.norm(x[items] - x[target], axis=1) for x in (original, other)]
      expected.append(stats.kendalltau(*distances).statistic)  # without ties tau-b is tau-a
  found = kendall_tau(original, other, dataset)
  assert found.users == len(expected)
  assert found.mean == pytest.approx(np.mean(expected))
  assert found.ties == 0


def test_tau_of_known_orders(dataset):
  """On a line the order is a matter of counting: kept by any growing map about the target, and all
  pairs are tied where all items are one point."""
  x = table(6, 3)
  assert kendall_tau(x, 7 * x + 2, dataset).mean == 1
  constant = kendall_tau(x, np.ones_like(x), dataset)
  assert (constant.mean, constant.ties) == (0, 1)


def test_ties_count_as_neither(dataset):
  """Two clusters of equal items: pairs within one are tied, those across may be kept."""
  x, coarse = table(1, 4), np.zeros((31, 1))
  coarse[16:] = 1
  total = []
  for u in range(len(dataset)):
    *history, target = dataset.sequence(u)
    pairs = list(itertools.combinations(np.unique(history), 2))
    order = [
      [np.sign(abs(t[i, 0] - t[target, 0]) - abs(t[j, 0] - t[target, 0])) for i, j in pairs]
      for t in (np.float64(x), coarse)
    ]
    if pairs:
      total.append(np.mean(np.prod(order, axis=0)))
  found = kendall_tau(x, coarse, dataset)
  assert found.mean == pytest.approx(np.mean(total))
  assert 0 < found.ties < 1


def test_tau_in_small_portions_is_the_same(dataset, monkeypatch):
  """Of wide vectors, those of fewer users are held at once."""
  original, other = table(5, 1), table(300, 2)
  seen, order = [], geometry._order
  monkeypatch.setattr(geometry, "_order", lambda x, h, t: seen.append(len(h)) or order(x, h, t))
  whole = kendall_tau(original, other, dataset)
  assert max(seen) > 1
  seen.clear()
  monkeypatch.setattr(geometry, "NUMBERS_AT_ONCE", 1000)  # 3 vectors, or pairs of 31 items
  assert kendall_tau(original, other, dataset) == pytest.approx(whole)
  assert set(seen) == {1}


def test_no_pair_is_an_error(tmp_path):
  (tmp_path / "sequences.txt").write_text("1 2 2 1\n2 1\n")
  with pytest.raises(ValueError, match="two distinct items"):
    kendall_tau(table(2, 0), table(2, 1), prepare_dataset(tmp_path, tmp_path / "cache"))


def test_spectrum_is_that_of_the_centred_table():
  for shape in ((40, 6), (6, 40)):
    x = np.random.default_rng(5).normal(size=shape) + 9
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(spectrum(x), values / values.sum(), atol=1e-7)


def test_effective_rank_counts_directions():
  flat = np.kron(np.eye(5), np.array([[1.0], [-1.0]]))  # five directions, each as long
  assert effective_rank(spectrum(np.pad(flat, ((0, 0), (0, 20))))) == pytest.approx(5)
  assert effective_rank(spectrum(np.ones((7, 3)))) == 0
  assert effective_rank(np.array([0.5, 0.5, 0, 0])) == pytest.approx(2)


def test_principal_plane_is_the_best_two_directions():
  x = np.random.default_rng(6).normal(size=(40, 6)) * [1, 5, 1, 9, 1, 1] + 3
  u, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  plane = principal_plane(x)
  np.testing.assert_allclose(np.abs(plane.place_E2), np.abs(u[:, :2] * values[:2]), atol=1e-8)
  assert plane.share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
  assert principal_plane(x[:, :1]).place_E2.shape == (40, 2)
  assert principal_plane(np.ones((4, 3))).share == 0


def test_table_has_a_dash_for_what_is_not_there():
  tau = {"text": {"quantized": {"mean": 0.5}, "before": {"mean": 0.25}}, "visual": {}}
  inputs = {"before": {"item token": {"width": 8, "effective_rank": 6.54}}}
  lines = geometry.geometry_table(tau, inputs).splitlines()
  assert lines[1].split() == ["text", "0.5000", "0.2500", "-"]
  assert lines[2].split() == ["visual", "-", "-", "-"]
  assert lines[4].split() == ["item", "token", "8", "6.5", "-"]
  inputs["after"] = {"item token": {"width": 8, "effective_rank": 1.26}}
  assert geometry.geometry_table(tau, inputs).splitlines()[4].split()[-2:] == ["6.5", "1.3"]
