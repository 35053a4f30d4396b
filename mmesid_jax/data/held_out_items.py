"""Holds items out of a dataset: writes it without them, and lists where users met them."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.data.folder.items import read_item_objects
from mmesid_jax.data.folder.writer import write_item_records, write_sequences, write_times
from mmesid_jax.errors import UserError
from mmesid_jax.files.feature_table import write_array


class ItemSplit(NamedTuple):
  """Item ids of the whole dataset, ascending.

  warm[k] is item k + 1 of the dataset without the cold items; cold[k] is item I + k + 1 when the
  cold items are appended to those I items.
  """

  warm: np.ndarray  # int64 [I]
  cold: np.ndarray  # int64 [N]

  def new_ids(self) -> np.ndarray:
    """Returns new ids by id of the whole dataset, int64 [1 + I + E]; entry 0 is 0."""
    ids = np.zeros(1 + len(self.warm) + len(self.cold), np.int64)
    ids[np.concatenate([self.warm, self.cold])] = np.arange(1, len(ids))
    return ids


def hold_out_items(num_items: int, fraction: float, seed: int) -> ItemSplit:
  """Chooses a fraction of the items at random: at least one; at least two are left.

  Raises UserError for a fraction that does not allow this.
  """
  count = max(round(fraction * num_items), 1) if 0 < fraction < 1 else 0
  if not 0 < count <= num_items - 2:
    raise UserError(
      f"--fraction={fraction}: of {num_items} items; expected a number above 0 and below 1 that "
      "leaves two items"
    )
  order = np.random.default_rng(seed).permutation(num_items) + 1
  return ItemSplit(np.sort(order[count:]), np.sort(order[:count]))


def write_warm_dataset(
  dataset: Dataset, split: ItemSplit, features: Mapping[str, np.ndarray], folder: pathlib.Path
) -> None:
  """Writes the dataset without the cold items as a dataset folder with feature tables.

  The files are sequences.txt, items.jsonl, <modality>.npy of every table [I, V] in `features`,
  and times.npy if the dataset is split by time. Users with cold items only are left out.
  """
  ids = split.new_ids()
  folder.mkdir(parents=True, exist_ok=True)

  write_sequences(folder, _warm_sequences(dataset, ids, len(split.warm)))
  if dataset.items_path is None:
    records = [{} for _ in range(dataset.num_items)]
  else:
    records = read_item_objects(pathlib.Path(dataset.items_path))
  warm_records = (records[item - 1] | {"item_id": ids[item].item()} for item in split.warm)
  write_item_records(folder, warm_records)
  for modality, x_IV in features.items():
    write_array(folder / f"{modality}.npy", x_IV[np.concatenate([[0], split.warm])])
  if dataset.temporal_cuts is not None:
    write_times(folder, dataset.temporal_cuts.times[ids[dataset.items] <= len(split.warm)])


def _warm_sequences(
  dataset: Dataset, ids: np.ndarray, num_warm: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (user id, new ids of the warm items) of every user who has any."""
  for u, user in enumerate(dataset.users):
    items = ids[dataset.sequence(u)]
    warm = items[items <= num_warm]
    if len(warm):
      yield user, warm


@dataclasses.dataclass(frozen=True)
class Cases:
  """Q items to rank, each given a user's earlier items; ids are those of `ItemSplit.new_ids`."""

  history: list[np.ndarray]  # the earlier warm items, oldest first, at least one
  had_QX: np.ndarray  # int32, all earlier items, which are not candidates; padded with 0
  item_Q: np.ndarray  # int32

  def __len__(self) -> int:
    return len(self.item_Q)

  def where(self, chosen_Q: np.ndarray) -> "Cases":
    """Selects cases by a mask, bool [Q]."""
    history = [h for h, chosen in zip(self.history, chosen_Q, strict=True) if chosen]
    return Cases(history, self.had_QX[chosen_Q], self.item_Q[chosen_Q])


def make_cases(history: list[np.ndarray], had: list[np.ndarray], item: list[int]) -> Cases:
  """Makes Cases; `had` becomes a padded table."""
  had_QX = np.zeros((len(had), max(map(len, had), default=0)), np.int32)
  for row, items in zip(had_QX, had, strict=True):
    row[: len(items)] = items
  return Cases(history, had_QX, np.array(item, np.int32))


def cold_cases(dataset: Dataset, split: ItemSplit, warm: Dataset) -> tuple[Cases, np.ndarray]:
  """Returns the first time that each user meets each cold item after a warm one.

  Also returns bool [Q]: whether the user's whole training part is before that item. `warm` is the
  dataset that `write_warm_dataset` wrote.
  """
  ids, I = split.new_ids(), len(split.warm)  # noqa: E741
  trained = dict(zip(warm.users.tolist(), warm.train_lengths.tolist(), strict=True))
  history, had, item, later = [], [], [], []
  for u, user in enumerate(dataset.users.tolist()):
    sequence = ids[dataset.sequence(u)]
    warm_before = np.cumsum(sequence <= I) - (sequence <= I)
    for t in np.flatnonzero((sequence > I) & (warm_before > 0)):
      before = sequence[:t]
      if sequence[t] in before:
        continue
      history.append(before[before <= I].astype(np.int32))
      had.append(np.unique(before))
      item.append(int(sequence[t]))
      later.append(warm_before[t] >= trained[user])
  return make_cases(history, had, item), np.array(later, bool)


def valid_cases(dataset: Dataset) -> Cases:
  """Returns the validation target of every user; a target in its own history is left out."""
  stop_U = dataset.split.targets["valid"] + 1
  sequences = [dataset.sequence(u)[: stop_U[u]] for u in evaluated_users(dataset, "valid")]
  sequences = [x for x in sequences if x[-1] not in x[:-1]]
  history = [x[:-1] for x in sequences]
  return make_cases(history, [np.unique(x) for x in history], [int(x[-1]) for x in sequences])
