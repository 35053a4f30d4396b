"""Sizes of 0 follow the data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax import pipeline
from mmesid_jax.config import default_config
from mmesid_jax.config.checks import check_values
from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import flatten
from mmesid_jax.config.sizes import SIZE_KEYS, fit_sizes_to_data, sizes_from_data
from mmesid_jax.errors import UserError

DEFAULTS = {key: flatten(default_config())[key] for key in SIZE_KEYS}


def open_config():
  config = default_config()
  config.data.dir = "somewhere"
  config.update_from_flattened_dict(dict.fromkeys(SIZE_KEYS, 0))
  return config


def refuse_to_count(config):
  raise AssertionError("no size is open")


def test_amazon_beauty_gets_the_defaults():
  assert sizes_from_data(22_363, 12_101, 198_502) == DEFAULTS


def test_five_users_get_small_batches():
  """As in the README's example: two codes for five items, a row or two a batch."""
  sizes = sizes_from_data(5, 5, 17)
  assert sizes["semantic_ids.quantizer.codes"] == 2
  assert sizes["collaborative.targets"] == sizes["recommender.targets"] == 64
  assert sizes["collaborative.rows"] == sizes["recommender.rows"] == 1


@given(*[st.integers(1, 10**9)] * 3)
def test_sizes_are_valid_and_at_most_the_defaults(users, items, interactions):
  sizes = sizes_from_data(users, items, interactions)
  assert sizes.keys() == set(SIZE_KEYS)
  assert all(0 < sizes[key] <= DEFAULTS[key] for key in SIZE_KEYS)
  assert all(size & (size - 1) == 0 for size in sizes.values())
  assert sizes["semantic_ids.quantizer.codes"] <= max(2, items // 32)
  assert interactions < 2048 or interactions >= 32 * sizes["recommender.targets"]
  config = open_config()
  config.update_from_flattened_dict(sizes)
  check_values(config)


def test_open_sizes_are_filled_in_and_given_ones_stay():
  config = open_config()
  config.recommender.rows = 3
  config.lock()  # as the flag's configuration is
  fit_sizes_to_data(config, lambda c: (2000, 600, 20_000))
  expected = {**sizes_from_data(2000, 600, 20_000), "recommender.rows": 3}
  assert {key: flatten(config)[key] for key in SIZE_KEYS} == expected
  assert expected["collaborative.targets"] == 512 and expected["collaborative.rows"] == 4
  before = flatten(config)
  fit_sizes_to_data(config, refuse_to_count)
  assert flatten(config) == before


def test_one_item_is_too_few_whatever_the_sizes():
  with pytest.raises(UserError, match="data.dir=somewhere: the data set has one item; to train"):
    fit_sizes_to_data(open_config(), lambda c: (2, 1, 6))


def test_both_models_read_equally_long_histories_by_default():
  config = default_config()
  assert config.collaborative.row_length == config.recommender.row_length
  assert config.collaborative.rows == config.recommender.rows


def test_longer_rows_are_fewer():
  """A user who follows the line on cut histories gets batches of the same number of tokens."""
  config = open_config()
  config.collaborative.row_length = 600
  config.recommender.row_length = 4096  # longer than a batch has targets
  fit_sizes_to_data(config, lambda c: (22_363, 12_101, 198_502))
  assert config.collaborative.rows == 2 and config.recommender.rows == 1
  assert config.collaborative.targets == config.recommender.targets == 2048


def test_open_sizes_without_data_name_the_missing_folder():
  config = open_config()
  config.data.dir = ""
  with pytest.raises(UserError, match="--config.data.dir is not set"):
    fit_sizes_to_data(config, refuse_to_count)


@pytest.mark.parametrize("key", SIZE_KEYS)
def test_a_size_that_was_not_filled_in_is_refused(key):
  config = open_config()
  config.update_from_flattened_dict({**DEFAULTS, key: 0})
  with pytest.raises(UserError, match=f"--config.{key}=0: expected a whole number from "):
    check_values(config)


def test_a_run_records_sizes_that_follow_its_data(tiny, tmp_path):
  changes = dict.fromkeys(SIZE_KEYS, 0) | {"data.synthetic.num_users": 60}
  config = tiny(changes={**changes, "stages": ("collaborative",), "collaborative.epochs": 1})
  pipeline.run_pipeline(config, tmp_path)
  found = flatten(read_config(tmp_path))
  interactions = sum(
    len(line.split()) - 1 for line in (tmp_path / "synthetic/sequences.txt").open()
  )
  row_lengths = {stage: config[stage].row_length for stage in ("collaborative", "recommender")}
  expected = sizes_from_data(60, 40, interactions, row_lengths)
  assert {key: found[key] for key in SIZE_KEYS} == expected
