"""Items held out of a data set: what is left without them, and where users met them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import open_atomic


class ItemSplit(NamedTuple):
  """Item ids of the whole data set, ascending. warm[k] is item k + 1 of what is left without the
  cold items, cold[k] item I + k + 1 when they are appended to its I items."""

  warm: np.ndarray  # int64 [I]
  cold: np.ndarray  # int64 [N]

  def new_ids(self) -> np.ndarray:
    """int64 by id of the whole data set; row 0 is 0."""
    ids = np.zeros(1 + len(self.warm) + len(self.cold), np.int64)
    ids[np.concatenate([self.warm, self.cold])] = np.arange(1, len(ids))
    return ids


def hold_out_items(num_items: int, fraction: float, seed: int) -> ItemSplit:
  """A fraction of the items, all equally likely, at least one, at least two stay. Raises
  UserError."""
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
  """The data set without the cold items, as files that `prepare` and `read_features` read:
  sequences.txt, items.jsonl, <modality>.npy of every table [I + 1, V] in `features`, and times.npy
  where the data set is split by time. Users who met cold items only are left out."""
  ids = split.new_ids()
  folder.mkdir(parents=True, exist_ok=True)

  def lines():
    for u, user in enumerate(dataset.users):
      warm = ids[dataset.sequence(u)]
      warm = warm[warm <= len(split.warm)]
      if len(warm):
        yield f"{user} {' '.join(map(str, warm))}\n".encode()

  with open_atomic(folder / SEQUENCES) as file:
    file.writelines(lines())
  if dataset.items_path is None:
    described = [{} for _ in range(dataset.num_items)]
  else:
    json_lines = pathlib.Path(dataset.items_path).read_bytes().splitlines()
    described = [json.loads(line) for line in json_lines]
  warm_items = (described[item - 1] | {"item_id": ids[item].item()} for item in split.warm)
  with open_atomic(folder / ITEMS) as file:
    file.writelines(json.dumps(x).encode() + b"\n" for x in warm_items)
  for modality, x_IV in features.items():
    kept_IV = x_IV[np.concatenate([[0], split.warm])]
    with open_atomic(folder / f"{modality}.npy") as file:
      np.save(file, kept_IV)
  if dataset.times is not None:
    kept = dataset.times.times[ids[dataset.items] <= len(split.warm)]
    with open_atomic(folder / TIMES) as file:
      np.save(file, kept)


@dataclasses.dataclass(frozen=True)
class Cases:
  """Q items to be ranked behind what a user had, by the ids of `Split`."""

  history: list[np.ndarray]  # the warm items before, oldest first, at least one
  had_QX: np.ndarray  # int32, all items before, which are no candidates; padded with 0
  item_Q: np.ndarray  # int32

  def __len__(self) -> int:
    return len(self.item_Q)

  def where(self, chosen_Q: np.ndarray) -> "Cases":
    """Those of bool [Q]."""
    history = [h for h, chosen in zip(self.history, chosen_Q, strict=True) if chosen]
    return Cases(history, self.had_QX[chosen_Q], self.item_Q[chosen_Q])


def make_cases(history: list[np.ndarray], had: list[np.ndarray], item: list[int]) -> Cases:
  """With what users had as a padded table."""
  had_QX = np.zeros((len(had), max(map(len, had), default=0)), np.int32)
  for row, items in zip(had_QX, had, strict=True):
    row[: len(items)] = items
  return Cases(history, had_QX, np.array(item, np.int32))


def cold_cases(dataset: Dataset, split: ItemSplit, left: Dataset) -> tuple[Cases, np.ndarray]:
  """The first time that any user meets a cold item behind a warm one; and bool [Q], whether all of
  the user's training part lies before it: in `left`, what `write_warm` left of the data set."""
  ids, I = split.new_ids(), len(split.warm)  # noqa: E741
  trained = dict(zip(left.users.tolist(), left.train_lengths.tolist(), strict=True))
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
  """The validation target of every user behind its history; a target in its own history is left
  out."""
  stop_U = dataset.split.targets["valid"] + 1
  sequences = [dataset.sequence(u)[: stop_U[u]] for u in evaluated_users(dataset, "valid")]
  sequences = [x for x in sequences if x[-1] not in x[:-1]]
  history = [x[:-1] for x in sequences]
  return make_cases(history, [np.unique(x) for x in history], [int(x[-1]) for x in sequences])
