"""Balanced assignment against linear programming."""

import numpy as np
import pytest
import scipy.optimize

from mmesid_jax.quantize import balance
from mmesid_jax.quantize.balance import balanced_assignment


def optimum(distance):
  """Least sum of distances with sizes within floor and ceil of N / C: the vertices are whole."""
  N, C = distance.shape
  by_point = np.kron(np.eye(N), np.ones(C))
  by_code = np.kron(np.ones(N), np.eye(C))
  found = scipy.optimize.linprog(
    distance.ravel(),
    A_eq=by_point,
    b_eq=np.ones(N),
    A_ub=np.concatenate([by_code, -by_code]),
    b_ub=[-(-N // C)] * C + [-(N // C)] * C,
  )
  return found.fun


def cost(distance, code):
  return distance[np.arange(len(code)), code].sum()


def distances(points, codes, seed, kind):
  rng = np.random.default_rng(seed)
  x, center = rng.normal(size=(points, 2)), rng.normal(size=(codes, 2))
  if kind == "skewed":  # all near one code, the others far off
    center += 30 * np.arange(codes)[:, None]
  if kind in ("repeated", "near"):
    x = x[rng.integers(0, 3, points)]
  if kind == "near":  # most points nearly equal, and so are most centers
    x += 1e-2 * rng.normal(size=x.shape)
    center[1:] = x[0] + 1e-2 * rng.normal(size=(codes - 1, 2))
  return ((x[:, None] - center) ** 2).sum(2).astype(np.float32)


@pytest.mark.parametrize("kind", ["plain", "skewed", "repeated", "near"])
@pytest.mark.parametrize(("points", "codes"), [(60, 6), (61, 7), (40, 3), (5, 8), (8, 8)])
def test_no_assignment_within_the_bounds_is_cheaper(points, codes, kind):
  for seed in range(3):
    distance = distances(points, codes, seed, kind)
    code, _ = balanced_assignment(distance)
    size = np.bincount(code, minlength=codes)
    assert points // codes <= size.min() and size.max() <= -(-points // codes)
    np.testing.assert_allclose(cost(distance, code), optimum(distance), rtol=1e-4, atol=1e-3)


def test_the_point_that_loses_least_moves():
  """Three points want code 0, which has room for two."""
  distance = np.float32([[0, 9], [0, 9], [0, 1], [9, 0]])
  np.testing.assert_array_equal(balanced_assignment(distance)[0], [0, 0, 1, 1])


@pytest.fixture
def paths(monkeypatch):
  """The paths along which points are moved, search by search."""
  seen = []
  search = balance._Transport._cheapest_paths
  monkeypatch.setattr(
    balance._Transport, "_cheapest_paths", lambda *a: seen.append(search(*a)) or seen[-1]
  )
  return seen


def test_prices_of_an_earlier_call_save_moves_and_change_no_cost(paths):
  distance = distances(1000, 30, 0, "plain")
  code, price = balanced_assignment(distance)
  cold = len(paths)
  again, _ = balanced_assignment(distance, price)
  assert len(paths) - cold < cold
  np.testing.assert_allclose(cost(distance, again), cost(distance, code), rtol=1e-5)


def test_equal_distances_move_many_points_at_once(paths):
  """All rows are equal: as many paths as codes, not as many as points."""
  code, price = balanced_assignment(np.ones((1000, 8), np.float32))
  np.testing.assert_array_equal(np.bincount(code), 125)
  assert len(paths) <= 16 and np.isfinite(price).all()


def near_duplicates(points, codes):
  """Nine in ten points nearly equal, with as many of the codes among them."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(points, 16))
  same = rng.permutation(points)[: points * 9 // 10]
  x[same] = x[same[0]] + 0.01 * rng.normal(size=(len(same), 16))
  center = x[rng.choice(points, codes, replace=False)]
  return ((x[:, None] - center) ** 2).sum(2).astype(np.float32)


def test_prices_tell_near_duplicates_apart(paths):
  """So that few points are left to move: one for some of the codes, not some for each."""
  code, _ = balanced_assignment(near_duplicates(1200, 120))
  np.testing.assert_array_equal(np.bincount(code, minlength=120), 10)
  assert sum(map(len, paths)) < 120


def test_one_search_serves_several_moves(paths, monkeypatch):
  """Paths of a search share no code. Without prices to start from the optimum is the same."""
  distance = near_duplicates(600, 60)
  expected, _ = balanced_assignment(distance)
  paths.clear()
  monkeypatch.setattr(
    balance, "_prices", lambda distance, price, warm: (price, distance.argmin(1), np.float32(1))
  )
  code, _ = balanced_assignment(distance)
  np.testing.assert_allclose(cost(distance, code), cost(distance, expected), rtol=1e-4)
  for found in paths:
    assert len({c for path in found for c in path}) == sum(map(len, found))
  assert sum(map(len, paths)) > 2 * len(paths)


def test_costs_are_as_if_computed_from_all_points(monkeypatch):
  """After every move, though only what the moved points change is computed."""
  move, checked = balance._Transport._move_along, []

  def checking(problem, path, tie):
    move(problem, path, tie)
    for a in path:
      members = np.flatnonzero(problem.code_E == a)
      np.testing.assert_array_equal(np.sort(problem.members[a]), members)
      own = problem.distance_EC[members]
      expected = (own - own[:, a : a + 1]).min(0) if len(members) else np.inf
      np.testing.assert_array_equal(problem.cost_CC[a], expected)
      checked.append(a)

  monkeypatch.setattr(balance._Transport, "_move_along", checking)
  for kind in ("plain", "near", "repeated"):
    balanced_assignment(distances(200, 12, 0, kind))
  balanced_assignment(near_duplicates(300, 20))
  assert len(checked) > 100


def test_one_code_takes_all():
  np.testing.assert_array_equal(balanced_assignment(np.ones((3, 1), np.float32))[0], 0)
