"""The counts of the blend, made again from all events by now; nothing is trained.

They are in a file of their own beside blend.safetensors, so training and its figures never see
them: they count the held-out items, too.
"""

import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import split_at
from mmesid_jax.data.batches import newest_first
from mmesid_jax.data.continuation import find_difference, find_other_item, find_other_titles
from mmesid_jax.data.dataset import Dataset, all_events, evaluated_users, prepare_dataset
from mmesid_jax.data.transitions import count_transitions
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files import artifact
from mmesid_jax.models.evidence import NEWEST
from mmesid_jax.stages.blend_stage import BLEND, amounts_and_shares, blend_file
from mmesid_jax.stages.evidence_stages import (
  SEARCH_USERS,
  item_shares,
  item_trends,
  make_model,
)
from mmesid_jax.stages.workdir import REFRESHED, reopen_workdir

Tensors = dict[str, np.ndarray]


def refresh_counts(path: pathlib.Path, data: pathlib.Path, data_dir: str | None = None) -> None:
  """Writes the file REFRESHED of the workdir `path`, with the counts of all events in `data`.

  data: a dataset folder that continues the one of training. data_dir: where that one is, if it has
  moved. Raises UserError for a workdir without a blend, and for data that do not continue it or
  have other items. Warns where only titles say that the items may be others.
  """
  tensors, header = BLEND.read(path, read_config(path))
  workdir = reopen_workdir(path, data_dir)
  with tempfile.TemporaryDirectory() as cache:
    dataset = prepare_dataset(data, cache, split_at(workdir.config))
    old = workdir.dataset
    if difference := find_difference(dataset, old) or find_other_item(dataset, old):
      raise UserError(
        f"{data}: {difference}; expected the data of {workdir.data_dir} with later events at the "
        "ends of the histories and new users after the others"
      )
    if doubt := find_other_titles(dataset, old):
      reporter.warn(
        f"{data}: {doubt}; an id must mean the same item there and in {workdir.data_dir}"
      )
    tables = count_all(dataset, tensors, header["settings"], workdir.config)
    artifact.write_artifact(
      workdir.artifact(REFRESHED),
      tables,
      {
        "stage": REFRESHED,
        "blend": header["fingerprint"],
        "dataset": dataset.fingerprint,
        "users": len(dataset),
        "events": len(dataset.items),
        "num_items": dataset.num_items,
        "settings": header["settings"],
      },
    )
    users, events = len(dataset), len(dataset.items)
    reporter.info(
      f"{workdir.artifact(REFRESHED)}: counts of {events:,} events ({events - len(old.items):,} "
      f"new) of {users:,} users ({users - len(old):,} new), which recommend serves from now on"
    )


def count_all(
  dataset: Dataset, tensors: Mapping[str, np.ndarray], settings: Mapping, config: ConfigDict
) -> Tensors:
  """The tensors of the blend that depend on events, from all of them, under its settings."""
  item_E, user_E = all_events(dataset)
  table = count_transitions(
    item_E,
    user_E,
    dataset.num_items,
    window=settings["window"],
    decay=settings["distance_decay"],
    followers=tensors["follower"].shape[1],
  )
  counted = {
    "follower": table.follower_IK,
    "count": table.count_IK,
    "share": item_shares(item_E, dataset.num_items),
    "trend": item_trends(item_E, user_E, dataset.num_items),
  }
  model = make_model({**tensors, **counted}, settings)
  amount_E, share_E = amounts_and_shares(model, _Histories(dataset, config.evaluation.targets))
  return {**counted, "amounts": amount_E, "shares": share_E}


def read_refreshed(path: pathlib.Path) -> Tensors:
  """The tensors in the workdir `path` that replace those of its blend; {} where there are none.

  Raises UserError where they were made for another blend.
  """
  file = path / f"{REFRESHED}.safetensors"
  if not file.exists():
    return {}
  tensors, header = artifact.read_artifact(file, REFRESHED)
  blend = artifact.read_header(blend_file(path), BLEND.name)
  made_for = [header[name] for name in ("blend", "num_items", "settings")]
  if made_for != [blend[name] for name in ("fingerprint", "num_items", "settings")]:
    raise UserError(
      f"{file}: made for another blend than the one beside it; run mmesid_jax.refresh again, or "
      "delete the file"
    )
  return tensors


class _Batch(NamedTuple):
  """The part of a Batch that the amount of evidence depends on."""

  history_QX: np.ndarray  # newest first
  weight_Q: np.ndarray


class _Histories:
  """The whole histories of the users that validation would take, in batches of one size."""

  def __init__(self, dataset: Dataset, size: int):
    self._dataset, self._size = dataset, size
    self._users = evaluated_users(dataset, "valid", SEARCH_USERS)

  def batches(self) -> Iterator[_Batch]:
    for start in range(0, len(self._users), self._size):
      history_QX = np.zeros((self._size, NEWEST), np.int32)
      users = self._users[start : start + self._size]
      newest = [self._dataset.sequence(user)[-NEWEST:] for user in users]
      history_QX[: len(users)] = newest_first(newest, NEWEST)
      yield _Batch(history_QX, np.arange(self._size) < len(users))
