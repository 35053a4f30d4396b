"""The best items for every user of a data set, in a file with a row for each user.

For the whole histories, or for those before the held-out items, which the file then names.
"""

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.data.folder.file_names import refuse_data_file
from mmesid_jax.display import reporter
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.files.atomic import check_new_file
from mmesid_jax.files.digest import file_sha256, json_sha256
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import PartFiles, parts_folder, without_empty_parts
from mmesid_jax.files.rows import CSV, JSON_LINES, PARQUET, Columns, check_rows_file
from mmesid_jax.serving.options import Options, open_recommender
from mmesid_jax.serving.ranker import TopItems
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.workdir import REFRESHED
from mmesid_jax.training.interrupts import StopRequest

USERS_PER_PART = 4096

SCHEMA = {
  "user_id": int,
  "user_key": str,
  "target_id": int,
  "target_key": str,
  "item_ids": list[int],
  "item_keys": list[str],
  "scores": list[float],
}

# A row for every recommended item, in a file that cannot hold lists.
LONG_SCHEMA = {
  **{name: SCHEMA[name] for name in ("user_id", "user_key", "target_id", "target_key")},
  **{"place": int, "item_id": int, "item_key": str, "score": float},
}

Keys = Sequence[str | None]  # by item id, row 0 unused


def write_all_users(
  path: pathlib.Path,
  output: pathlib.Path,
  options: Options,
  split: str | None = None,
  *,
  overwrite: bool = False,
) -> None:
  """Writes SCHEMA's columns, in CSV those of LONG_SCHEMA, of keys where there are any, best items
  first.

  split: "valid" or "test" writes a row for every user with a target in that part, for the history
  before it, and the target; None takes all users with their whole histories, and has no targets.
  overwrite: whether a file that exists is replaced.

  A user whose history leaves fewer than top_k items has shorter lists; a new item has no key. Users
  are answered in parts: a run that was stopped or killed continues after its last whole part, and
  the file has the same bytes as that of an uninterrupted run.

  Raises UserError, and Interrupted for SIGINT and SIGTERM.
  """
  check_rows_file(output, (PARQUET, JSON_LINES, CSV))
  refuse_data_file(output)
  if not parts_folder(output).is_dir():  # else it may be that of a run that was killed as it ended
    check_new_file(output, overwrite=overwrite)
  model = open_recommender(path, options)
  dataset = model.workdir.dataset
  model.check_top_k(options.top_k)
  counted = model.workdir.artifact(REFRESHED)
  if split and counted in model.files:
    raise UserError(
      f"--split={split}: {counted} counts the held-out items, too; delete it, or take "
      "--model=network"
    )
  user_keys = model.user_keys
  user_E, length_E = _histories(dataset, split)
  absent = set() if split else {"target_id", "target_key"}
  absent |= {"user_key"} if user_keys is None else set()
  absent |= {"item_keys", "item_key", "target_key"} if model.item_keys is None else set()
  of_format = LONG_SCHEMA if output.suffix == CSV else SCHEMA
  schema = {name: kind for name, kind in of_format.items() if name not in absent}
  settings = _settings(model, options) | {"columns": list(schema), "split": split}
  shape = model.shape_for(length_E)
  starts = range(0, len(user_E), USERS_PER_PART)
  folder = parts_folder(output)
  with without_empty_parts(folder), lock_folder(folder, doing="recommending", flag="--output"):
    parts = PartFiles(output, len(starts), settings, overwrite=overwrite)
    missing, short = set(parts.missing()), 0
    with (
      StopRequest() as stop_request,
      reporter.progress(label="recommend", total=len(user_E), unit="users") as bar,
    ):
      for n, start in enumerate(starts):
        rows = range(start, min(start + USERS_PER_PART, len(user_E)))
        if n not in missing:
          bar.initial = bar.n = rows.stop  # the rate is that of the other parts
          continue
        if signal_name := stop_request.signal_name():
          raise Interrupted(
            f"{signal_name} at user {start:,} of {len(user_E):,}, those before are in "
            f"{parts.folder}; run the same command again"
          )
        histories = [dataset.sequence(user_E[row])[: length_E[row]] for row in rows]
        top = model.top_items(histories, options.top_k, repeat=options.repeat, shape=shape)
        users = user_E[start : rows.stop]
        short += int(np.isneginf(top.score_EA[:, 0]).sum())
        columns = {
          "user_id": dataset.users[users].tolist(),
          "user_key": user_keys and [user_keys[user] for user in users],
          **_item_columns(top, model.item_keys),
        }
        if split:
          targets = dataset.items[dataset.offsets[users] + length_E[start : rows.stop]].tolist()
          columns["target_id"] = targets
          columns["target_key"] = model.item_keys and [model.item_keys[i] for i in targets]
        parts.write(n, schema, _long(columns) if output.suffix == CSV else columns)
        bar.update(len(rows))
    parts.finish()  # a signal ends it at once: the parts stay until the output is there
  reporter.info(f"{output}: {len(user_E):,} users, {', '.join(schema)}")
  if not options.repeat and (empty := max(short, _count_empty(model, user_E, length_E))):
    reporter.warn(f"the lists of {empty:,} users are empty: {model.why_nothing()}")


def _count_empty(model: Recommender, user_E: np.ndarray, length_E: np.ndarray) -> int:
  """Users whose history, the first items that are read, holds all that may be recommended."""
  dataset, offered = model.workdir.dataset, model.offered
  long_E = np.flatnonzero(length_E >= len(offered))
  histories = (dataset.sequence(user_E[e])[: length_E[e]] for e in long_E)
  return sum(bool(np.isin(offered, history).all()) for history in histories)


def _histories(dataset: Dataset, split: str | None) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the users that are answered, and how many of their first items are read, int64 [E].

  Raises UserError where nobody has a target in `split`.
  """
  if split is None:
    return np.arange(len(dataset)), dataset.lengths
  users = evaluated_users(dataset, split)
  if not len(users):
    raise UserError(
      f"--split={split}: no user has a {split} target; the {dataset.split.name} split takes them "
      f"of {dataset.split.evaluates}"
    )
  return users, dataset.split.targets[split][users]


def _settings(model: Recommender, options: Options) -> dict:
  """The settings that all parts of a file must share."""
  new_items = options.new_items
  return {
    "top_k": options.top_k,
    "repeat": options.repeat,
    "served": model.kind,
    "model": " ".join(file_sha256(artifact)[:16] for artifact in model.files),
    "only new": options.only_new,
    "new items": new_items and file_sha256(pathlib.Path(new_items))[:16],
    "dataset": model.workdir.dataset.fingerprint,
    "item keys": model.item_keys and json_sha256(model.item_keys)[:16],
    "user keys": model.user_keys and json_sha256(model.user_keys)[:16],
    "users per part": USERS_PER_PART,
    "users per batch": model.config.evaluation.targets,
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


def _long(columns: Columns) -> Columns:
  """The columns of LONG_SCHEMA from those of SCHEMA."""
  counts = list(map(len, columns["item_ids"]))
  long = {"place": [place for count in counts for place in range(1, count + 1)]}
  for name in ("item_ids", "item_keys", "scores"):
    long[name[:-1]] = columns[name] and list(itertools.chain.from_iterable(columns[name]))
  for name in ("user_id", "user_key", "target_id", "target_key"):
    if column := columns.get(name):
      long[name] = np.repeat(np.array(column, object), counts).tolist()
  return long
