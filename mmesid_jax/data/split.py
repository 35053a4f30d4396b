"""What of a user's sequence trains, and which items are the targets of validation and test.

Leave-one-out: a user's last item is the test target, the one before the validation target, the rest
trains. Users with fewer than 3 items only train.

Temporal: two times cut all sequences alike. What is before the first trains; the validation target
is a user's first item from the first time on, if it is before the second, and the test target the
first from the second time on. All of the user's items before a target are its history; where there
is none, the user is not evaluated on it. So nothing trains that is later than any target.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.errors import UserError

NO_TARGET = -1


class Split(NamedTuple):
  """Places count a user's items from 0, the oldest. What is before a target is its history, of at
  least one item."""

  name: str
  train_lengths: np.ndarray  # int64 [U], how many of a user's first items train
  targets: Mapping[str, np.ndarray]  # "valid", "test" -> place, int64 [U], or NO_TARGET
  left_out: Mapping[str, int]  # "valid", "test" -> users whose target had no history
  evaluates: str  # whom, in words


class TemporalCuts(NamedTuple):
  """What a temporal split is made from."""

  times: np.ndarray  # int64 [interactions], never earlier than the one before it of the same user
  valid_from: int  # seconds, as the times
  test_from: int

  def __str__(self) -> str:
    # numpy's, for years that datetime does not know
    return " and ".join(str(np.datetime64(cut, "s")) for cut in (self.valid_from, self.test_from))


def leave_one_out_split(lengths: np.ndarray) -> Split:
  """Of users with so many items, int64 [U]."""
  enough = lengths >= 3
  return Split(
    "leave-one-out",
    np.where(enough, lengths - 2, lengths),
    {n: np.where(enough, lengths - k, NO_TARGET) for n, k in (("valid", 2), ("test", 1))},
    {"valid": 0, "test": 0},
    "users with 3 items or more",
  )


def temporal_cuts(times: np.ndarray, at: Sequence[float]) -> TemporalCuts:
  """The times that stand at the quantiles `at`, ascending: so large a share of all interactions is
  before them, or less where several have the same time."""
  places = [int(share * len(times)) for share in at]
  return TemporalCuts(times, *np.partition(times, places)[places].tolist())


def temporal_split(offsets: np.ndarray, by: TemporalCuts) -> Split:
  """Of users whose interactions are those from offsets[u] to offsets[u + 1]."""

  def before(time: int) -> np.ndarray:
    return np.add.reduceat(by.times < time, offsets[:-1], dtype=np.int64)

  begin = {"valid": before(by.valid_from), "test": before(by.test_from)}
  end = {"valid": begin["test"], "test": np.diff(offsets)}
  found = {name: begin[name] < end[name] for name in begin}
  return Split(
    "temporal",
    begin["valid"],
    {name: np.where(found[name] & (x > 0), x, NO_TARGET) for name, x in begin.items()},
    {name: int((found[name] & (x == 0)).sum()) for name, x in begin.items()},
    "users with items before a cut and behind it",
  )


def check_split(split: Split, by: TemporalCuts, at: Sequence[float]) -> None:
  """Raises UserError for cuts that leave nobody to train, validate or test."""
  none = {
    "train": not split.train_lengths.any() and "no item is before the first",
    "validate": (split.targets["valid"] == NO_TARGET).all()
    and "nobody has an item between them and one before it",
    "test": (split.targets["test"] == NO_TARGET).all()
    and "nobody has an item from the second on and one before it",
  }
  for task, reason in none.items():
    if reason:
      shares = ",".join(map(str, at))
      raise UserError(
        f"--config.data.split_at={shares}: cuts at {by}, which leaves nobody to {task}: {reason}; "
        "choose other shares"
      )


def describe_split(split: Split, by: TemporalCuts) -> str:
  """Where a temporal split cuts, and how many users that leaves."""
  users = {name: int((x != NO_TARGET).sum()) for name, x in split.targets.items()}
  left_out = split.left_out
  return (
    f"temporal split at {by}: {np.count_nonzero(split.train_lengths):,} users train, "
    f"{users['valid']:,} validate ({left_out['valid']:,} left out: no item before the target), "
    f"{users['test']:,} test ({left_out['test']:,} left out)"
  )
