"""Recall of an approximate nearest-neighbor index, for the vectors of `export --format=index`.

  python -m mmesid_jax.export --workdir=runs/beauty --format=index --output=vectors
  python benchmarks/index_recall.py --index=vectors

Needs usearch. The index is a graph (HNSW). Larger products do not mean smaller angles, so every
item gets one number more, which makes all items equally long, and every user a zero: then the
products stay, and the nearest item by angle is the one with the largest product.
"""

import json
import pathlib
import time

import numpy as np

from mmesid_jax.display.table import format_table


def equally_long(item_NV: np.ndarray) -> np.ndarray:
  """The rows with one more column, float32 [N, V + 1], all with the length of the longest."""
  square_N = np.square(item_NV, dtype=np.float64).sum(1)
  rest_N = np.sqrt(np.maximum(square_N.max() - square_N, 0))
  return np.concatenate([item_NV, rest_N[:, None]], axis=1).astype(np.float32)


def best_items(query_QV: np.ndarray, item_NV: np.ndarray, k: int) -> np.ndarray:
  """The rows of the k largest products, int [Q, k], in no order."""
  found = []
  for start in range(0, len(query_QV), 256):
    product_QN = query_QV[start : start + 256] @ item_NV.T
    found.append(np.argpartition(product_QN, -k, axis=1)[:, -k:])
  return np.concatenate(found)


def recall(found_QK: np.ndarray, best_QK: np.ndarray) -> float:
  """The share of the best items that were found."""
  shares = [len({*a} & {*b}) / len(b) for a, b in zip(found_QK, best_QK, strict=True)]
  return float(np.mean(shares))


def main(argv: list[str]) -> None:
  del argv
  from usearch.index import Index

  folder = pathlib.Path(INDEX.value)
  item_NV, user_UV = np.load(folder / "items.npy"), np.load(folder / "users.npy", mmap_mode="r")
  rng = np.random.default_rng(SEED.value)
  asked = rng.choice(len(user_UV), min(USERS.value, len(user_UV)), replace=False)
  query_QV = np.asarray(user_UV[np.sort(asked)])
  index = Index(
    ndim=item_NV.shape[1] + 1,
    metric="cos",
    dtype="f32",
    connectivity=CONNECTIONS.value,
    expansion_add=512,
  )
  start = time.perf_counter()
  index.add(np.arange(len(item_NV)), equally_long(item_NV))
  built = time.perf_counter() - start
  asked_QV = np.pad(query_QV, ((0, 0), (0, 1)))
  figures = {"items": len(item_NV), "width": item_NV.shape[1], "users": len(asked_QV)}
  figures |= {"seconds_to_build": built, "recall": {}}
  rows = []
  for k in map(int, K.value):
    start = time.perf_counter()
    best_QK = best_items(query_QV, item_NV, k)
    exact = len(asked_QV) / (time.perf_counter() - start)
    rows.append([str(k), "exact", "1.0000", f"{exact:,.0f}"])
    for expansion in map(int, EXPANSION.value):
      index.expansion_search = max(expansion, k)
      start = time.perf_counter()
      found_QK = index.search(asked_QV, k).keys
      rate = len(asked_QV) / (time.perf_counter() - start)
      share = recall(found_QK, best_QK)
      figures["recall"][f"{k}@{expansion}"] = {"recall": share, "users_per_second": rate}
      rows.append([str(k), f"visits {expansion}", f"{share:.4f}", f"{rate:,.0f}"])
  print(f"{len(item_NV):,} items, {item_NV.shape[1]} numbers each; built in {built:.1f} s")
  print(format_table(["k", "search", "recall", "users/s"], rows))
  if OUTPUT.value:
    pathlib.Path(OUTPUT.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  from absl import app, flags

  INDEX = flags.DEFINE_string("index", None, "The folder of vectors.", required=True)
  K = flags.DEFINE_list("k", ["10", "100"], "How many items are asked for.")
  EXPANSION = flags.DEFINE_list(
    "expansion", ["128", "256", "512", "1024"], "Places that are visited."
  )
  CONNECTIONS = flags.DEFINE_integer("connections", 32, "Neighbors of a place in the graph.")
  USERS = flags.DEFINE_integer("users", 2000, "Users that ask, drawn at random.")
  SEED = flags.DEFINE_integer("seed", 0, "Which users.")
  OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")
  app.run(main)
