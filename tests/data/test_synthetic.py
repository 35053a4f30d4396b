import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data.dataset import Dataset, evaluated_users, popularity, prepare_dataset
from mmesid_jax.data.features import read_features
from mmesid_jax.data.synthetic import cluster_name, write_synthetic
from mmesid_jax.errors import UserError

SIZE = {"users": 2000, "items": 600, "clusters": 24, "seed": 0}  # the quickstart's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("synthetic")
  write_synthetic(folder, **SIZE)
  return folder


@pytest.fixture(scope="module")
def dataset(folder, tmp_path_factory) -> Dataset:
  return prepare_dataset(folder, tmp_path_factory.mktemp("cache"))


def clusters(dataset) -> np.ndarray:
  """Cluster index by item id, as the titles tell it; -1 for padding."""
  names = [title.rpartition(" no. ")[0] for title in dataset.titles()[1:]]
  return np.concatenate([[-1], np.unique(names, return_inverse=True)[1]])


def hit_rate(dataset, scores, users, k=10) -> float:
  """HR@k on test, the history masked; scores(last item) -> [I + 1]."""
  hits = 0
  for u in users:
    *history, target = dataset.sequence(u)
    score_I = np.array(scores(history[-1]), float)
    score_I[[0, *history]] = -np.inf
    hits += (score_I >= score_I[target]).sum() <= k
  return hits / len(users)


def transitions(dataset) -> np.ndarray:
  count_II = np.zeros((dataset.num_items + 1,) * 2)
  for u in evaluated_users(dataset):
    train = dataset.sequence(u)[:-2]
    np.add.at(count_II, (train[:-1], train[1:]), 1)
  return count_II


def test_sizes_and_shapes(folder, dataset):
  assert len(dataset) == 2000 and dataset.num_items == 600
  assert 5 <= dataset.lengths.min() and dataset.lengths.max() <= 30
  assert 9 < dataset.lengths.mean() < 11
  assert all(len(set(dataset.sequence(u))) == dataset.lengths[u] for u in range(len(dataset)))
  assert np.unique(clusters(dataset)[1:], return_counts=True)[1].tolist() == [25] * 24
  assert read_features(folder / "text.npy", 600).shape == (601, 64)
  assert read_features(folder / "visual.npy", 600).shape == (601, 48)
  for line in (folder / "items.jsonl").read_text().splitlines():
    item = json.loads(line)
    assert re.fullmatch(r"[A-Z][a-z ]+ [a-z ]+ no\. \d+", item["title"])
    quality, product = item["categories"][2], item["categories"][1].lower()
    assert item["title"].startswith(f"{quality} {product} no. ") and item["brand"]


def test_the_last_item_says_far_more_than_popularity(dataset):
  count_I, count_II = popularity(dataset), transitions(dataset)
  users = evaluated_users(dataset)
  popular = hit_rate(dataset, lambda last: count_I, users)
  sequential = hit_rate(dataset, lambda last: count_II[last] + 1e-6 * count_I, users)
  assert popular < 0.15 and sequential > 0.5


def test_the_order_within_a_cluster_matters(dataset):
  """Who follows whom says more than the cluster and its popular items do."""
  count_I, count_II, cluster_I = popularity(dataset), transitions(dataset), clusters(dataset)
  stays = [u for u in evaluated_users(dataset) if np.ptp(cluster_I[dataset.sequence(u)[-2:]]) == 0]

  def in_cluster(last):
    return np.where(cluster_I == cluster_I[last], 1 + count_I, 0)

  cluster = hit_rate(dataset, in_cluster, stays, k=3)
  follower = hit_rate(dataset, lambda last: in_cluster(last) * (0.2 + count_II[last]), stays, k=3)
  assert follower > cluster + 0.015


@pytest.mark.parametrize("name", ["text", "visual"])
def test_content_knows_the_cluster_of_items_that_interactions_hardly_know(folder, dataset, name):
  x_IV, cluster_I = read_features(folder / f"{name}.npy", 600), clusters(dataset)
  rare = np.flatnonzero(popularity(dataset) <= 3)[1:]  # without padding
  assert len(rare) > 20
  others = np.setdiff1d(np.arange(1, 601), rare)
  distance = ((x_IV[rare, None] - x_IV[None, others]) ** 2).sum(-1)
  nearest = cluster_I[others[distance.argmin(1)]]
  assert (nearest == cluster_I[rare]).mean() > 0.7  # chance: 1/24


def test_popularity_is_skewed(dataset):
  count_I = np.sort(popularity(dataset)[1:])[::-1]
  assert count_I[:60].sum() > 0.3 * count_I.sum()


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
  code = f"from mmesid_jax.data.synthetic import *; write_synthetic({str(tmp_path)!r}, **{SIZE})"
  subprocess.run([sys.executable, "-c", code], check=True)
  names = sorted(p.name for p in folder.iterdir())
  assert names == ["items.jsonl", "sequences.txt", "text.npy", "visual.npy"]
  assert all((folder / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)


def test_another_seed_gives_others(folder, tmp_path):
  write_synthetic(tmp_path, **SIZE | {"seed": 1})
  for name in ("sequences.txt", "text.npy", "visual.npy", "items.jsonl"):
    assert (folder / name).read_bytes() != (tmp_path / name).read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.data())
def test_any_size_gives_a_valid_dataset(tmp_path_factory, users, items, data):
  count = data.draw(st.integers(1, items))
  folder = tmp_path_factory.mktemp("any")
  write_synthetic(folder, users=users, items=items, clusters=count, seed=0)
  dataset = prepare_dataset(folder, folder / "cache")
  assert (len(dataset), dataset.num_items) == (users, items)
  assert (dataset.lengths >= min(5, items)).all() and dataset.lengths.max() <= min(30, items)


def test_cluster_names_differ():
  assert len({cluster_name(k) for k in range(500)}) == 500
  assert cluster_name(0) == ("Rose", "hand cream")


@pytest.mark.parametrize("change", [{"users": 0}, {"items": 3}, {"clusters": 0}])
def test_impossible_sizes(tmp_path, change):
  with pytest.raises(UserError, match="synthetic data of"):
    write_synthetic(tmp_path / "x", **{"users": 5, "items": 9, "clusters": 4, "seed": 0} | change)
  assert not (tmp_path / "x").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file: cannot write the synthetic dataset"):
    write_synthetic(tmp_path / "file", users=2, items=9, clusters=4, seed=0)
