"""The best items for every user of a data set, in a file with a row for each user."""

import pathlib
from collections.abc import Sequence

import numpy as np

from mmesid_jax.data.folder import keys
from mmesid_jax.display import reporter
from mmesid_jax.errors import Interrupted
from mmesid_jax.files.digest import file_sha256, json_sha256
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import PartFiles, parts_folder
from mmesid_jax.files.rows import Columns, check_rows_file
from mmesid_jax.serving.recommender import TopItems
from mmesid_jax.serving.served_model import Options, ServedModel, open_model
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.training.interrupts import StopRequest

USERS_PER_PART = 4096

SCHEMA = {
  "user_id": int,
  "user_key": str,
  "item_ids": list[int],
  "item_keys": list[str],
  "scores": list[float],
}

Keys = Sequence[str | None]  # by item id, row 0 unused


def write_all_users(path: pathlib.Path, output: pathlib.Path, options: Options) -> None:
  """Writes SCHEMA's columns, those of keys where there are any, best items first.

  A user whose history leaves fewer than top_k items has shorter lists; a new item has no key. Users
  are answered in parts: a run that was stopped or killed continues after its last whole part, and
  the file has the same bytes as that of an uninterrupted run.

  Raises UserError, and Interrupted for SIGINT and SIGTERM.
  """
  check_rows_file(output)
  served = open_model(path, options)
  model, dataset = served.model, served.workdir.dataset
  model.check_top_k(options.top_k)
  user_keys = keys.kept_user_keys(served.workdir.data_dir, len(dataset))
  kept = {"user_key": user_keys, "item_keys": served.item_keys}
  schema = {name: kind for name, kind in SCHEMA.items() if kept.get(name, ()) is not None}
  settings = _settings(served, options, user_keys) | {"columns": list(schema)}
  shape = model.shape_for(dataset.lengths)
  starts = range(0, len(dataset), USERS_PER_PART)
  with (
    lock_folder(parts_folder(output), doing="recommending", flag="--output"),
    StopRequest() as stop_request,
    reporter.progress(label="recommend", total=len(dataset), unit="users") as bar,
  ):
    parts = PartFiles(output, len(starts), settings)
    missing = set(parts.missing())
    for n, start in enumerate(starts):
      rows = range(start, min(start + USERS_PER_PART, len(dataset)))
      if n not in missing:
        bar.initial = bar.n = rows.stop  # the rate is that of the other parts
        continue
      if signal_name := stop_request.signal_name():
        raise Interrupted(
          f"{signal_name} at user {start:,} of {len(dataset):,}, those before are in "
          f"{parts.folder}; run the same command again"
        )
      histories = [dataset.sequence(row) for row in rows]
      top = model.top_items(histories, options.top_k, repeat=options.repeat, shape=shape)
      columns = {
        "user_id": dataset.users[start : rows.stop].tolist(),
        "user_key": user_keys and user_keys[start : rows.stop],
        **_item_columns(top, served.item_keys),
      }
      parts.write(n, schema, columns)
      bar.update(len(rows))
    parts.finish()
  reporter.info(f"{output}: {len(dataset):,} users, {', '.join(schema)}")


def _settings(served: ServedModel, options: Options, user_keys: Keys | None) -> dict:
  """The settings that all parts of a file must share."""
  artifact, new_items = served.workdir.artifact(RECOMMENDER.name), options.new_items
  return {
    "top_k": options.top_k,
    "repeat": options.repeat,
    "model": file_sha256(artifact)[:16],
    "only new": options.only_new,
    "new items": new_items and file_sha256(pathlib.Path(new_items))[:16],
    "dataset": served.workdir.dataset.fingerprint,
    "item keys": served.item_keys and json_sha256(served.item_keys)[:16],
    "user keys": user_keys and json_sha256(user_keys)[:16],
    "users per part": USERS_PER_PART,
    "users per batch": served.workdir.config.evaluation.targets,
  }


def _item_columns(top: TopItems, item_keys: Keys | None) -> Columns:
  """The columns that are lists of recommended items."""
  count_E = np.isfinite(top.score_EA).sum(1).tolist()

  def rows_of(x_EA: np.ndarray) -> list[list]:
    return [row[:count] for row, count in zip(x_EA.tolist(), count_E, strict=True)]

  ids = rows_of(top.item_EA)
  # decimals that are no longer than float32 needs: JSON would show those of a double
  scores = rows_of(top.score_EA.astype(str).astype(np.float64))
  names = item_keys and [[item_keys[i] for i in row] for row in ids]
  return {"item_ids": ids, "item_keys": names, "scores": scores}
