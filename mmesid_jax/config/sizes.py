"""Sizes that follow the data: a size of 0 becomes one that suits the number of events and items."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_data_source
from mmesid_jax.config.schema import KEYS, flatten
from mmesid_jax.errors import UserError

SIZE_KEYS = (
  "collaborative.rows",
  "collaborative.targets",
  "semantic_ids.batch",
  "semantic_ids.quantizer.codes",
  "recommender.rows",
  "recommender.targets",
  "evaluation.targets",
)

ROW_LENGTHS = {
  stage: KEYS[f"{stage}.row_length"].default for stage in ("collaborative", "recommender")
}


def sizes_from_data(
  users: int, items: int, interactions: int, row_lengths: Mapping[str, int] = ROW_LENGTHS
) -> dict[str, int]:
  """A size for every key of SIZE_KEYS, each a power of 2.

  An epoch has at least 32 batches, unless there are fewer than 2,048 interactions, and a batch at
  most 2,048 targets. Rows have as many tokens as there are targets, so longer rows are fewer. A
  codebook has 32 items for every code, and at most 256 codes; a batch of items an eighth of the
  catalogue, and at most 1,024. Amazon Beauty (22,363 users, 12,101 items, 198,502 interactions)
  gets the defaults.

  row_lengths: tokens of a row, by stage.
  """
  targets = _power_of_two(interactions // 32, 64, 2048)
  rows = {stage: _power_of_two(targets // n, 1, targets) for stage, n in row_lengths.items()}
  return {
    "collaborative.rows": rows["collaborative"],
    "collaborative.targets": targets,
    "semantic_ids.batch": _power_of_two(items // 8, 32, 1024),
    "semantic_ids.quantizer.codes": _power_of_two(items // 32, 2, 256),
    "recommender.rows": rows["recommender"],
    "recommender.targets": targets,
    "evaluation.targets": _power_of_two(users, 8, 256),
  }


def fit_sizes_to_data(
  config: ConfigDict, count_data: Callable[[ConfigDict], tuple[int, int, int]]
) -> None:
  """Replaces every size that is 0 by one that follows the data, in place.

  Args:
    config: The whole configuration.
    count_data: config -> users, items, interactions; called only where a size is 0.

  Raises:
    UserError: Where a size is 0 and no data is named, or the data cannot be read or has one item.
  """
  flat = flatten(config)
  if open_keys := [key for key in SIZE_KEYS if flat[key] == 0]:
    check_data_source(config)
    row_lengths = {stage: max(flat[f"{stage}.row_length"], 1) for stage in ROW_LENGTHS}
    users, items, interactions = count_data(config)
    if items < 2:
      raise UserError(
        f"--config.data.dir={config.data.dir}: the data set has one item; to train, it needs two"
      )
    sizes = sizes_from_data(users, items, interactions, row_lengths)
    config.update_from_flattened_dict({key: sizes[key] for key in open_keys})


def _power_of_two(number: int, low: int, high: int) -> int:
  """The largest power of 2 that is at most `number`, or the nearer of the limits outside them."""
  return min(max(1 << max(number, 1).bit_length() - 1, low), high)
