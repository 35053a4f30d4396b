"""Vectors of items and users for a nearest-neighbor index, in files that every library reads."""

import json
import pathlib

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder, check_new_directory
from mmesid_jax.files.feature_table import create_table, write_array
from mmesid_jax.files.rows import PARQUET, check_rows_file, write_rows
from mmesid_jax.serving.recommender import Recommender

USERS_AT_ONCE = 4096


def write_index(model: Recommender, output: pathlib.Path) -> None:
  """Writes a new folder: items.npy [N, V] and users.npy [U, V], float32, and in items.parquet and
  users.parquet the id, key and title of each row.

  The product of a user's row and an item's is the item's static score: `Ranker.static_table` says
  what it lacks. Users have their whole histories. Raises UserError for a model without such
  vectors, a folder that exists, and what the disk refuses.
  """
  check_new_directory(output)
  check_rows_file(output / f"items{PARQUET}")
  table_NV = model.static_table()[1:]
  dataset = model.workdir.dataset
  item_keys = model.item_keys and model.item_keys[1:]
  with atomic_folder(output) as folder:
    write_array(folder / "items.npy", table_NV)
    ids = list(range(1, model.num_items + 1))
    _write_names(folder / f"items{PARQUET}", ids, item_keys, model.titles[1:])
    shape = (len(dataset), table_NV.shape[1])
    with create_table(folder / "users.npy", shape, np.dtype(np.float32)) as out_UV:
      batch_shape = model.shape_for(dataset.lengths)
      with reporter.progress(label="users", total=len(dataset), unit="users") as bar:
        for start in range(0, len(dataset), USERS_AT_ONCE):
          rows = range(start, min(start + USERS_AT_ONCE, len(dataset)))
          histories = [dataset.sequence(row) for row in rows]
          out_UV[start : rows.stop] = model.static_queries(histories, shape=batch_shape)
          bar.update(len(rows))
      if not np.isfinite(out_UV).all() or not np.isfinite(table_NV).all():
        raise UserError(f"{model.path}: its vectors are not finite; the model has diverged")
    _write_names(folder / f"users{PARQUET}", dataset.users.tolist(), model.user_keys)
    about = {"model": model.kind, "items": len(table_NV), "users": len(dataset), "width": shape[1]}
    (folder / "index.json").write_text(json.dumps(about, indent=2) + "\n")
  missing = ", ".join(s for s in ("transitions", "repeats", "reranking") if s in model.sources)
  score = f"score of the {model.kind}" + (f" without {missing}" if missing else "")
  reporter.info(f"{output}: items {table_NV.shape}, users {shape}; a product is the {score}")


def _write_names(path, ids, keys, titles=None) -> None:
  columns = {"id": ids} | ({"key": keys} if keys else {}) | ({"title": titles} if titles else {})
  write_rows(path, {"id": int} | {name: str for name in list(columns)[1:]}, columns)
