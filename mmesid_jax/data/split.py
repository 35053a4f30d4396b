"""Splits users' sequences into training items and the targets of validation and test.

Leave-one-out: a user's last item is the test target, the one before it is the validation target,
and the rest trains. Users with fewer than 3 items only train.

Temporal: two cuts in time, the same for all users. Items before the first cut train. A user's
validation target is the first item between the cuts, and the test target is the first item after
the second cut. All items of the user before a target are its history; a user without a history is
not evaluated on that target. So no training item is later than any target.

A refit trains on all items before the test: leave-one-out on all but the test targets, temporal on
all items before the second cut. The test targets and their histories stay the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.errors import UserError

NO_TARGET = -1


class Split(NamedTuple):
  """A split of all users' sequences. Places in a sequence count from 0, the oldest item.

  The items before a target are its history, which has at least one item.
  """

  name: str
  train_lengths: np.ndarray  # int64 [U], number of a user's first items that train
  before_test: np.ndarray  # int64 [U], number of a user's first items that are not for the test
  targets: Mapping[str, np.ndarray]  # "valid", "test" -> place, int64 [U], or NO_TARGET
  left_out: Mapping[str, int]  # "valid", "test" -> users whose target had no history
  evaluates: str  # the users that are evaluated, in words

  def refitted(self) -> "Split":
    """The split of a refit: all items before the test train, and nobody is validated."""
    return self._replace(
      train_lengths=self.before_test,
      targets={**self.targets, "valid": np.full_like(self.targets["valid"], NO_TARGET)},
      left_out={**self.left_out, "valid": 0},
      evaluates="nobody: a refit trains on the validation items",
    )


class TemporalCuts(NamedTuple):
  """The times of all interactions, and the two cuts of a temporal split, in seconds."""

  times: np.ndarray  # int64 [interactions], ascending within a user
  valid_from: int
  test_from: int

  def __str__(self) -> str:
    # numpy's dates, because datetime ends with the year 9999
    return " and ".join(str(np.datetime64(cut, "s")) for cut in (self.valid_from, self.test_from))


def leave_one_out_split(lengths: np.ndarray) -> Split:
  """Splits leave-one-out, given the number of items of every user, int64 [U]."""
  enough = lengths >= 3
  return Split(
    "leave-one-out",
    np.where(enough, lengths - 2, lengths),
    np.where(enough, lengths - 1, lengths),
    {n: np.where(enough, lengths - k, NO_TARGET) for n, k in (("valid", 2), ("test", 1))},
    {"valid": 0, "test": 0},
    "users with 3 items or more",
  )


def temporal_cuts(times: np.ndarray, at: Sequence[float]) -> TemporalCuts:
  """Returns the times at the two quantiles `at`, ascending.

  That share of all interactions is before a cut, or less if several have the time of the cut.
  """
  places = [int(share * len(times)) for share in at]
  return TemporalCuts(times, *np.partition(times, places)[places].tolist())


def temporal_split(offsets: np.ndarray, cuts: TemporalCuts) -> Split:
  """Splits by time; user u has the interactions from offsets[u] to offsets[u + 1]."""

  def items_before(time: int) -> np.ndarray:
    return np.add.reduceat(cuts.times < time, offsets[:-1], dtype=np.int64)

  begin = {"valid": items_before(cuts.valid_from), "test": items_before(cuts.test_from)}
  end = {"valid": begin["test"], "test": np.diff(offsets)}
  has_target = {name: begin[name] < end[name] for name in begin}
  return Split(
    "temporal",
    begin["valid"],
    begin["test"],
    {name: np.where(has_target[name] & (x > 0), x, NO_TARGET) for name, x in begin.items()},
    {name: int((has_target[name] & (x == 0)).sum()) for name, x in begin.items()},
    "users with items before and after a cut",
  )


def check_split(split: Split, cuts: TemporalCuts, at: Sequence[float]) -> None:
  """Raises UserError for cuts that leave nobody to train, validate or test."""
  empty = {
    "train": not split.train_lengths.any() and "no item is before the first",
    "validate": (split.targets["valid"] == NO_TARGET).all()
    and "nobody has an item between them and one before it",
    "test": (split.targets["test"] == NO_TARGET).all()
    and "nobody has an item from the second on and one before it",
  }
  for task, reason in empty.items():
    if reason:
      shares = ",".join(map(str, at))
      raise UserError(
        f"--config.data.split_at={shares}: cuts at {cuts}, which leaves nobody to {task}: "
        f"{reason}; choose other shares"
      )


def describe_split(split: Split, cuts: TemporalCuts) -> str:
  """Describes a temporal split in one line: its cuts and the number of users in each part."""
  users = {name: int((x != NO_TARGET).sum()) for name, x in split.targets.items()}
  left_out = split.left_out
  return (
    f"temporal split at {cuts}: {np.count_nonzero(split.train_lengths):,} users train, "
    f"{users['valid']:,} validate ({left_out['valid']:,} left out: no item before the target), "
    f"{users['test']:,} test ({left_out['test']:,} left out)"
  )
