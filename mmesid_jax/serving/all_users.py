"""The best items for every user of a data set, in a file of a row a user."""

import pathlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from mmesid_jax.data.folder import keys
from mmesid_jax.errors import Interrupted
from mmesid_jax.files.digest import file_sha256, json_sha256
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import PartFiles, parts_folder
from mmesid_jax.files.rows import Columns
from mmesid_jax.serving.recommender import Best, Recommender
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.workdir import Workdir
from mmesid_jax.training.interrupts import StopRequest

USERS_A_PART = 4096

SCHEMA = {
  "user_id": int,
  "user_key": str,
  "item_ids": list[int],
  "item_keys": list[str],
  "scores": list[float],
}

Keys = Sequence[str | None]  # by item id, row 0 unused


def write(
  workdir: Workdir,
  model: Recommender,
  output: pathlib.Path,
  *,
  item_keys: Keys | None,
  new_items: str | None,
  only_new: bool,
  top_k: int,
  repeat: bool,
) -> None:
  """SCHEMA's columns, those of keys where there are any, best items first. A user whose history
  leaves fewer than top_k items has shorter lists, a new item has no key.

  Users go through in parts: a run that was stopped or killed goes on behind its last whole part,
  and the file is that of a run in peace. new_items: the file that the model's were added from;
  only_new: whether it offers them alone.
  Raises UserError, and Interrupted for SIGINT and SIGTERM.
  """
  model.check_top_k(top_k)
  dataset, users = workdir.dataset, len(workdir.dataset)
  user_keys = keys.kept_user_keys(workdir.data_dir, users)
  kept = {"user_key": user_keys, "item_keys": item_keys}
  schema = {name: kind for name, kind in SCHEMA.items() if kept.get(name, ()) is not None}
  settings = {
    "top_k": top_k,
    "repeat": repeat,
    "model": _digest(workdir.artifact(recommender_stage.RECOMMENDER.name)),
    "only new": only_new,
    "new items": new_items and _digest(pathlib.Path(new_items)),
    "dataset": dataset.fingerprint,
    "item keys": item_keys and _digest_of(item_keys),
    "user keys": user_keys and _digest_of(user_keys),
    "columns": list(schema),
    "users a part": USERS_A_PART,
    "users a batch": workdir.config.evaluation.targets,
  }
  shape = model.shape_for(dataset.lengths)
  starts = range(0, users, USERS_A_PART)
  with lock_folder(parts_folder(output), doing="recommending", flag="--output"), StopRequest() as stopping:
    parts = PartFiles(output, len(starts), settings)
    missing = set(parts.missing())
    with tqdm(total=users, desc="recommend", unit=" users", delay=3, leave=False) as bar:
      for n, start in enumerate(starts):
        rows = range(start, min(start + USERS_A_PART, users))
        names = user_keys and user_keys[start : rows.stop]
        if n not in missing:
          bar.initial = bar.n = rows.stop  # the rate is that of what is left
          continue
        if signal := stopping.signal_name():
          raise Interrupted(
            f"{signal} at user {start:,} of {users:,}, those before are in {parts.folder}; "
            "run the same command again"
          )
        histories = [dataset.sequence(row) for row in rows]
        best = model.best(histories, top_k, repeat=repeat, shape=shape)
        columns = {"user_id": dataset.users[start : rows.stop].tolist(), "user_key": names}
        parts.write(n, schema, columns | _of_items(best, item_keys))
        bar.update(len(rows))
    parts.finish()
  print(f"{output}: {users:,} users, {', '.join(schema)}")


def _of_items(best: Best, item_keys: Keys | None) -> Columns:
  """The columns that are lists of recommended items."""
  left_E = np.isfinite(best.score_EA).sum(1).tolist()

  def cut(x_EA: np.ndarray) -> list[list]:
    return [row[:left] for row, left in zip(x_EA.tolist(), left_E, strict=True)]

  ids = cut(best.item_EA)
  # in decimals that are no longer than float32 needs: JSON would show a double's
  scores = cut(best.score_EA.astype(str).astype(np.float64))
  names = item_keys and [[item_keys[i] for i in row] for row in ids]
  return {"item_ids": ids, "item_keys": names, "scores": scores}


def _digest(file: pathlib.Path) -> str:
  """Of the file's bytes, hexadecimal, long enough to tell two apart."""
  return file_sha256(file)[:16]


def _digest_of(names: Keys) -> str:
  """Of keys, as `_digest`."""
  return json_sha256(names)[:16]
