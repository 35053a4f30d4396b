"""Generates a synthetic dataset with known structure, for the quickstart and the tests.

Every item has a latent vector near the center of its cluster. Text and visual features are noisy
non-linear views of that vector. Users move from item to item by it: the next item is one that the
latent vector of the last item, rotated by a fixed rotation, points at. So the order of items tells
more than their popularity, and content tells more about rare items than interactions do.
"""

import os
from pathlib import Path

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES
from mmesid_jax.data.folder.writer import write_item_records, write_sequences
from mmesid_jax.errors import UserError
from mmesid_jax.files.feature_table import write_array

LATENT = 16  # width of the latent vectors
SPREAD = 0.7  # deviation of items from the center of their cluster; that of the centers is 1
SHARPNESS = 0.4  # how strongly the last item determines the next item within its cluster
ZIPF = 0.7  # exponent of the popularity skew
STAY = 0.8  # probability that the next item is in the same cluster
NEIGHBORS = (0.7, 0.2, 0.1)  # probabilities of the three clusters that users move to
SHORTEST, LONGEST, MEAN_LENGTH = 5, 30, 10

VIEWS = {"text": (64, 0.15), "visual": (48, 0.3)}  # name -> width and noise
SYNTHETIC_FILES = (SEQUENCES, ITEMS, *(f"{name}.npy" for name in VIEWS))
QUALITIES = (
  *("Rose", "Almond", "Lemon", "Cedar", "Honey", "Mint"),
  *("Lavender", "Coconut", "Ginger", "Violet", "Oat", "Sea salt"),
)
PRODUCTS = (
  *("hand cream", "shampoo", "lip balm", "bath soap", "face mask", "hair oil"),
  *("shower gel", "perfume", "body scrub", "nail polish", "foot balm", "eye cream"),
)
BRANDS = ("Alder & Finch", "Bluegate", "Coralie", "Dunmere", "Estrella", "Fernhill", "Gaspard")


def write_synthetic(
  directory: str | os.PathLike, *, users: int, items: int, clusters: int, seed: int
) -> None:
  """Writes sequences.txt, items.jsonl, text.npy and visual.npy; equal arguments give equal files.

  No user has an item twice; users have 5 to 30 items, or all items of a smaller catalogue. Titles
  name the cluster ("Rose hand cream no. 12"). Raises UserError for less than one user or cluster,
  for fewer items than clusters, and when the directory cannot be written.
  """
  if users < 1 or not 1 <= clusters <= items:
    raise UserError(
      f"synthetic data of {users} users, {items} items, {clusters} clusters: expected at least one "
      "user, one cluster and an item for every cluster"
    )
  rng = np.random.default_rng(seed)
  cluster_I = rng.permutation(np.arange(items) % clusters)  # here index 0 is item id 1
  z_IW = rng.normal(size=(clusters, LATENT))[cluster_I] + SPREAD * rng.normal(size=(items, LATENT))
  views = {name: _view(z_IW, width, noise, rng) for name, (width, noise) in VIEWS.items()}
  catalogue = _catalogue(cluster_I, clusters, rng)
  sequences = _walks(users, cluster_I, z_IW, rng)

  path = Path(directory)
  try:
    path.mkdir(parents=True, exist_ok=True)
    for name, x_IV in views.items():
      write_array(path / f"{name}.npy", x_IV)
    write_item_records(path, catalogue)
    write_sequences(path, enumerate(sequences, start=1))
  except OSError as error:
    raise UserError(f"{path}: cannot write the synthetic dataset ({error.strerror})") from None


def _view(z_IW: np.ndarray, width: int, noise: float, rng: np.random.Generator) -> np.ndarray:
  """Returns tanh of a random projection, plus noise: float32 [I, width], row 0 zero."""
  projection = rng.normal(size=(LATENT, width)) / np.sqrt(LATENT)
  x_IV = np.tanh(1.5 * z_IW @ projection) + noise * rng.normal(size=(len(z_IW), width))
  return np.concatenate([np.zeros((1, width)), x_IV]).astype(np.float32)


def _catalogue(cluster_I: np.ndarray, clusters: int, rng: np.random.Generator) -> list[dict]:
  brands = rng.integers(len(BRANDS), size=(clusters, 2))  # two brands per cluster
  counts = np.zeros(clusters, int)
  catalogue = []
  for item_id, k in enumerate(cluster_I, start=1):
    counts[k] += 1
    quality, product = cluster_name(int(k))
    catalogue.append(
      {
        "item_id": item_id,
        "title": f"{quality} {product} no. {counts[k]}",
        "brand": BRANDS[brands[k, rng.integers(2)]],
        "categories": ["Beauty", product.capitalize(), quality],
        "description": None,
      }
    )
  return catalogue


def cluster_name(k: int) -> tuple[str, str]:
  """Returns quality and product of cluster k; unique, and different in both for k and k + 1."""
  series, place = divmod(k, len(QUALITIES) * len(PRODUCTS))
  turn, product = divmod(place, len(PRODUCTS))
  quality = QUALITIES[(turn + product) % len(QUALITIES)]
  return quality if not series else f"{quality} {series + 1}", PRODUCTS[product]


def _walks(
  users: int, cluster_I: np.ndarray, z_IW: np.ndarray, rng: np.random.Generator
) -> list[list[int]]:
  """Simulates the users: one list of distinct item ids each."""
  items, clusters = len(cluster_I), cluster_I.max() + 1
  popularity_I = 1.0 / rng.permutation(np.arange(1, items + 1)) ** ZIPF
  rotation, _ = np.linalg.qr(rng.normal(size=(LATENT, LATENT)))
  query_IW = SHARPNESS * (z_IW @ rotation)
  neighbors = np.array([rng.permutation(clusters)[: len(NEIGHBORS)] for _ in range(clusters)])
  members = [np.flatnonzero(cluster_I == k) for k in range(clusters)]
  shares = np.array(NEIGHBORS[: neighbors.shape[1]]) / sum(NEIGHBORS[: neighbors.shape[1]])

  walks = []
  for _ in range(users):
    length = min(items, LONGEST, SHORTEST + rng.geometric(1 / (MEAN_LENGTH - SHORTEST + 1)) - 1)
    free_I = np.ones(items, bool)
    item = rng.choice(items, p=popularity_I / popularity_I.sum())
    walk = [item]
    while len(walk) < length:
      free_I[item] = False
      k = cluster_I[item]
      if rng.random() > STAY:
        k = rng.choice(neighbors[k], p=shares)
      candidates = members[k][free_I[members[k]]]
      if not len(candidates):  # the user has all items of the cluster: any other item
        candidates = np.flatnonzero(free_I)
      logits = z_IW[candidates] @ query_IW[item] + np.log(popularity_I[candidates])
      weights = np.exp(logits - logits.max())
      item = rng.choice(candidates, p=weights / weights.sum())
      walk.append(item)
    walks.append([int(i) + 1 for i in walk])
  return walks
