"""Checks of a whole configuration, before anything heavy starts."""

import math
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.modality_names import RULE
from mmesid_jax.config.schema import (
  FROM_EVENTS,
  KEYS,
  code_tokens,
  flatten,
  key_row,
  modalities,
)
from mmesid_jax.errors import UserError

MAX_TOKENS = 2**24  # of a batch: as many as the largest models are trained on


def check_values(config: ConfigDict) -> None:
  """Raises UserError for the first value out of range, or for values that contradict each other.

  evaluation.select is checked by `evaluation.metrics`, the only list of metrics.
  """
  _check_checkpoint(config.recommender)  # first: else sizes of 0 would be named instead
  _check_ranges(config)
  check_data_source(config)
  if not modalities(config):
    raise UserError("--config.features: every modality is empty; name at least one feature table")
  if config.recommender.as_new and modalities(config) == (FROM_EVENTS,):
    raise UserError(
      f"--config.recommender.as_new={config.recommender.as_new}: new items need content; name a "
      "table, such as --config.features.text"
    )
  _check_widths(config)
  _check_head(config)


def _check_ranges(config: ConfigDict, section: str = "") -> None:
  """Raises UserError for the first value out of range among the keys that begin with `section`."""
  for key, value in flatten(config).items():
    if not key.startswith(section):
      continue
    row = key_row(key)
    if row is None and key.startswith("features."):
      raise UserError(f"--config.{key}: expected {RULE}")
    if row is None:
      raise UserError(f"--config.{key}: no such key; did you mean {nearest_name(key, list(KEYS))}?")
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
      raise UserError(f"--config.{key}={value!r}: expected {row.rule.text}, finite")
    if not _has_type_of(row.default, value) or not row.rule.accepts(value):
      raise UserError(f"--config.{key}={value!r}: expected {row.rule.text}")


def _has_type_of(default: Any, value: Any) -> bool:
  """Whether a value has the type that its default has, as JSON gives it: lists for tuples."""
  if isinstance(default, tuple):
    return isinstance(value, list) and all(_has_type_of(default[0], x) for x in value)
  if isinstance(default, float):
    return isinstance(value, float | int) and not isinstance(value, bool)
  return type(value) is type(default)


def check_data_source(config: ConfigDict) -> None:
  """Raises UserError for a value of config.data out of range, where no data is named, and for a
  split that the data cannot have."""
  _check_ranges(config, "data.")
  if config.data.source != "synthetic" and not config.data.dir:
    data = "the TensorFlow dataset" if config.data.source == "tfds" else "sequences.txt"
    raise UserError(f"--config.data.dir is not set: name the folder that holds {data}")
  if config.data.source == "synthetic" and config.data.split == "temporal":
    raise UserError(
      "--config.data.split=temporal: the synthetic catalogue has no times; take leave_one_out"
    )


def _check_checkpoint(r: ConfigDict) -> None:
  if r.backbone.checkpoint:
    return
  if r.backbone.kind in ("lora", "frozen"):
    raise UserError(
      f"--config.recommender.backbone.kind={r.backbone.kind}: keeps pretrained weights; name "
      "their directory with --config.recommender.backbone.checkpoint"
    )
  if r.prompt.text:
    raise UserError(
      "--config.recommender.prompt.text: text is cut by a checkpoint's tokenizer; name its "
      "directory with --config.recommender.backbone.checkpoint, or leave the text empty"
    )


def _check_widths(config: ConfigDict) -> None:
  c, r = config.collaborative, config.recommender
  for stage in ("collaborative", "recommender"):
    rows, length = config[stage].rows, config[stage].row_length
    if rows * length > MAX_TOKENS:
      raise UserError(
        f"--config.{stage}.rows={rows}: with row_length={length} a batch has {rows * length:,} "
        f"tokens; expected at most {MAX_TOKENS:,}"
      )
  if c.width % c.heads:
    raise UserError(
      f"--config.collaborative.heads={c.heads}: does not divide collaborative.width={c.width}"
    )
  if r.heads % r.kv_heads:
    raise UserError(
      f"--config.recommender.kv_heads={r.kv_heads}: does not divide recommender.heads={r.heads}"
    )
  if r.head_width % 2:
    raise UserError(
      f"--config.recommender.head_width={r.head_width}: rotary positions need it even"
    )
  if r.row_length <= r.prompt.response + code_tokens(config):
    more = f" and the {code_tokens(config)} codes of an ID" if code_tokens(config) else ""
    raise UserError(
      f"--config.recommender.row_length={r.row_length}: must be above "
      f"prompt.response={r.prompt.response}{more}"
    )


def _check_head(config: ConfigDict) -> None:
  r = config.recommender
  if r.head == "rank":
    return
  if r.codes == "none":
    raise UserError(
      f"--config.recommender.head={r.head}: generates codes, but recommender.codes=none; take "
      "codebooks"
    )
  if r.generate.modality not in (*modalities(config), "all"):
    raise UserError(
      f"--config.recommender.generate.modality={r.generate.modality}: expected one of "
      f"{', '.join(modalities(config))}, those with feature tables, or all"
    )
  if config.evaluation.beams < (most := max(config.evaluation.cutoffs)):
    raise UserError(
      f"--config.evaluation.beams={config.evaluation.beams}: too few items for metrics at {most} "
      f"(evaluation.cutoffs); take {most} or more"
    )
  if r.head == "generate" and "blend" in config.stages:
    raise UserError(
      "--config.recommender.head=generate: gives no scores of all items, which the stage blend "
      "adds up; take head=both, or leave blend out of --config.stages"
    )
