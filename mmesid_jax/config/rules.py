"""Rows of the table of keys, and kinds of rules: which values a key may have.

Rows that several stages share, of batches and of optimizers, are made here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

# Functions of optax that take a learning rate, b2, weight_decay and mask: a name here is enough.
OPTIMIZERS = ("adamw", "lion")
# Positive float32 numbers: models compute with them, whatever a configuration can hold.
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


class Rule(NamedTuple):
  """Values that a key, or a part of an artifact, may have, and the words for "expected ..."."""

  accepts: Callable[[Any], bool]
  text: str


def at_least(low: float) -> Rule:
  return Rule(lambda x: low <= x <= LARGEST, f"a number >= {low} that float32 holds")


def whole(low: int, high: int = 2**31 - 1) -> Rule:
  """Whole numbers; by default up to the largest int32, which arrays of ids and counts hold."""
  return Rule(lambda x: low <= x <= high, f"a whole number from {low} to {high:,}")


def above_zero() -> Rule:
  return Rule(lambda x: SMALLEST <= x <= LARGEST, "a number > 0 that float32 holds")


def fraction() -> Rule:
  return Rule(lambda x: 0 <= x < 1, "a number in [0, 1)")


def one_of(*names: str) -> Rule:
  return Rule(lambda x: x in names, "one of " + ", ".join(names))


def some_of(*names: str) -> Rule:
  return list_of(lambda x: x in names, "a non-empty tuple out of " + ", ".join(names))


def list_of(accepts: Callable[[Any], bool], text: str) -> Rule:
  return Rule(lambda x: len(x) > 0 and all(accepts(v) for v in x), text)


def list_of_whole(low: int, high: int = 2**31 - 1) -> Rule:
  one = whole(low, high)
  return list_of(one.accepts, f"a non-empty tuple, each {one.text}")


def true_or_false() -> Rule:
  return Rule(lambda x: isinstance(x, bool), "true or false")


def words(text: str) -> Rule:
  """Any text: files are looked for when they are read."""
  return Rule(lambda x: isinstance(x, str), text)


class Key(NamedTuple):
  """A row of the table of keys; the meaning is one line of at most 100 characters.

  added: the key came later, and a workdir without it was made with its default.
  """

  default: Any
  rule: Rule
  meaning: str
  added: bool = False


def optimizer_keys(
  section: str, learning_rate: float, weight_decay: float, schedule: str, warmup_steps: int
) -> dict[str, Key]:
  """The rows of a stage's optimizer."""
  # fmt: off
  rows = {
    "kind": Key("adamw", one_of(*OPTIMIZERS),
      "Optimizer; lion wants a learning rate 3 to 10 times lower than adamw's, and b2 = 0.99.",
      added=True),
    "learning_rate": Key(learning_rate, above_zero(),
      "Highest learning rate, reached after the warm-up."),
    "schedule": Key(schedule, one_of("cosine", "constant"),
      "Learning rate after the warm-up: down to 0 along a cosine, or constant."),
    "warmup_steps": Key(warmup_steps, whole(0),
      "Steps in which the learning rate rises from 0 in a straight line; at most a tenth of all."),
    "weight_decay": Key(weight_decay, at_least(0),
      "Weight decay of matrices and tables; biases and scales of norms have none."),
    "clip": Key(1.0, at_least(0),
      "Largest global norm of the gradients, longer ones are scaled down; 0 = no clipping."),
    "b2": Key(0.999, Rule(lambda x: 0 < x < 1, "a number in (0, 1)"),
      "Decay rate of the average of squared gradients (adamw) or of the momentum (lion)."),
  }
  # fmt: on
  return {f"{section}.optimizer.{name}": row for name, row in rows.items()}


def batch_keys(
  section: str, rows: int, row_length: int, targets: int, epochs: int
) -> dict[str, Key]:
  """The rows of the batches of a stage that reads histories."""
  # fmt: off
  found = {
    "rows": Key(rows, whole(1, 2**20),
      "Rows of a batch; the histories of several users are packed into a row."),
    "row_length": Key(row_length, whole(2, 2**20),
      "Tokens of a row; the history of a user who has more is cut into pieces."),
    "targets": Key(targets, whole(1, 2**24),
      "Places for targets, the items to predict, in a batch."),
    "epochs": Key(epochs, whole(1, 10**6),
      "Passes over the training data."),
  }
  # fmt: on
  return {f"{section}.{name}": row for name, row in found.items()}
