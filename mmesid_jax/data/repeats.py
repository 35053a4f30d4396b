"""Held-out items that their users have met before, as where people buy a thing again.

The masked protocol leaves a user's history out, so it ranks such a target last whatever the model
says.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users

MATTERS = 0.01  # share of the targets from which on it is worth a line


class Repeats(NamedTuple):
  """The number of targets of a part, and of those that are in their own user's history."""

  targets: int
  repeated: int

  @property
  def matter(self) -> bool:
    """Whether so large a share repeats that the masked metrics hide it."""
    return self.repeated > 0 and self.repeated >= MATTERS * self.targets

  def __str__(self) -> str:
    return f"{self.repeated:,} of {self.targets:,} ({self.repeated / max(self.targets, 1):.1%})"


def repeated_targets(dataset: Dataset, part: str) -> np.ndarray:
  """Whether the target in `part`, "valid" or "test", is in the user's history: bool [U].

  The users are those of `evaluated_users`, in that order.
  """
  place_U = dataset.split.targets[part]
  users = evaluated_users(dataset, part)
  target_U = np.zeros(len(dataset), dataset.items.dtype)
  target_U[users] = dataset.items[dataset.offsets[users] + place_U[users]]
  row_E = np.repeat(np.arange(len(dataset)), dataset.lengths)
  position_E = np.arange(len(dataset.items)) - dataset.offsets[row_E]
  # without a target the place is negative, so nothing is before it
  same_E = (dataset.items == target_U[row_E]) & (position_E < place_U[row_E])
  return np.bincount(row_E[same_E], minlength=len(dataset))[users] > 0


def count_repeats(dataset: Dataset) -> dict[str, Repeats]:
  """ "valid" and "test" -> how many of the targets are in their own user's history."""
  found = {part: repeated_targets(dataset, part) for part in ("valid", "test")}
  return {part: Repeats(len(x), int(x.sum())) for part, x in found.items()}


def count_held_out_repeats(items: np.ndarray, offsets: np.ndarray) -> dict[str, Repeats]:
  """Counts the same of sequences that are split leave-one-out, before there is a data set.

  items: integer ids from 1, [interactions]; user u has items[offsets[u]:offsets[u + 1]].
  """
  users = np.arange(len(offsets) - 1)
  return count_repeats(Dataset(items, offsets, users, int(items.max()), "", None))


def describe_repeats(counts: Mapping[str, Repeats]) -> str | None:
  """Says how many targets repeat, and what to do about it; None where too few do to matter."""
  if not any(of_part.matter for of_part in counts.values()):
    return None
  parts = ", ".join(f"{of_part} of the {part} items" for part, of_part in counts.items())
  return (
    f"bought or met again: {parts} are in their user's own history, and the masked metrics rank "
    "them last whatever a model says; read the unmasked metrics, select by "
    "--config.evaluation.select=unmasked/nDCG@10, and recommend with --repeat"
  )
