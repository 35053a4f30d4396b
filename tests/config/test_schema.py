"""Every key has a rule, presets leave sizes alone, and a refusal names the key that was typed."""

import ast
import importlib.util
import json
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any

import pytest
from absl import flags
from checkpoints import write_tiny_checkpoint
from ml_collections import ConfigDict, config_flags

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.paths import LOCATIONS
from mmesid_jax.config.presets import PRESETS
from mmesid_jax.config.saved import identity, read_config
from mmesid_jax.config.schema import (
  KEYS,
  default_config,
  flatten,
  modalities,
  split_at,
)
from mmesid_jax.config.sizes import fit_sizes_to_data
from mmesid_jax.errors import UserError
from mmesid_jax.stages import backbone

ROOT = pathlib.Path(__file__).parents[2]
OTHERS = ("ablations", "options", "pretraining", "prepare")  # for other commands than train
CONFIGS = sorted(f for f in (ROOT / "configs").glob("*.py") if f.stem not in OTHERS)

# What a preset may not touch; each is 1 at the least.
SIZES = (
  *(f"collaborative.{n}" for n in ("width", "layers", "heads")),
  *(f"semantic_ids.{n}" for n in ("quantizer.levels", "quantizer.codes", "batch")),
  *("semantic_ids.validate_every_epochs", "semantic_ids.quantizer.sinkhorn_iterations"),
  *(f"recommender.{n}" for n in ("width", "layers", "heads", "kv_heads", "head_width")),
  *(f"recommender.{n}" for n in ("mlp_width", "prompt.length", "lora.rank")),
  *(
    f"{s}.{n}" for s in ("collaborative", "recommender") for n in ("rows", "row_length", "targets")
  ),
  *(f"{s}.epochs" for s in ("collaborative", "semantic_ids", "recommender")),
  *(f"data.synthetic.{n}" for n in ("num_users", "num_items", "num_clusters")),
  *("evaluation.targets", "run.log_every", "run.save_every", "run.keep"),
)
OTHER_SIZES = ("semantic_ids.hidden", "evaluation.cutoffs", "evaluation.resamples")

# No value of these is wrong by itself: files are looked for when they are read.
FREE = {
  *("data.dir", "features.collaborative", "features.text", "features.visual"),
  *("data.synthetic.seed", "recommender.lora.rslora", "recommender.prompt.text"),
  *("recommender.backbone.checkpoint", "recommender.lora.start"),
  *("run.compilation_cache", "semantic_ids.standardize", "blend.network"),
  "recommender.generate.modality",  # a rule where codes are generated: tests/test_heads.py
}


def valid_config(preset: str = "best", changes: Mapping[str, Any] | None = None) -> ConfigDict:
  config = default_config(preset)
  config.data.dir = "somewhere"
  config.update_from_flattened_dict(changes or {})
  return config


DEFAULTS = flatten(valid_config())


def changed(key: str, value) -> ConfigDict:
  return valid_config(changes={key: tuple(value) if isinstance(value, list) else value})


def assert_refused(key: str, value) -> None:
  with pytest.raises(UserError) as caught:
    check_values(changed(key, value))
  message = str(caught.value)
  assert message.startswith(f"--config.{key}={value!r}: expected "), message
  assert "\n" not in message


def wrong(key: str, value) -> list:
  """What no key of this kind may be."""
  if key.startswith("mesh."):
    return [0, -2, 10**30]  # -1 stands for the rest
  if isinstance(value, list):
    return [[], ["nonsense"] if isinstance(value[0], str) else [*value, -1]]
  return {int: [-1, 2**31, 10**30], float: [-1.0, float("nan")], str: ["nonsense", ""]}[type(value)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_leaves_sizes_alone(preset):
  config = valid_config(preset)
  check_values(config)
  flat = flatten(config)
  assert config.preset == preset
  assert flat.keys() == DEFAULTS.keys()
  assert {k: flat[k] for k in (*SIZES, *OTHER_SIZES)} == {
    k: DEFAULTS[k] for k in (*SIZES, *OTHER_SIZES)
  }


def test_the_presets_differ_where_the_readme_says_so():
  paper, released = flatten(valid_config("paper")), flatten(valid_config("released_code"))
  published = {
    "recommender.encoder": "mlp",
    "recommender.fusion": "frequency",
    "recommender.gate_temperature": 0.001,
    "recommender.whiten": 0,
    "recommender.targets_per_user": 50,
    "semantic_ids.reconstruction": "mmd",
    "semantic_ids.alignment": "info_nce",
    "semantic_ids.quantizer.commitment": 0.01,
  }
  assert {key: paper[key] for key in published} == published
  assert paper["recommender.prompt.response"] > 0 == DEFAULTS["recommender.prompt.response"]
  assert {k: released[k] for k in paper if paper[k] != released[k]} == {
    "preset": "released_code",
    "semantic_ids.alignment": "mmd",
    "semantic_ids.quantizer.commitment_levels": "first",
    "semantic_ids.quantizer.sinkhorn_first": "samples",
  }


def test_an_unknown_preset_is_refused():
  with pytest.raises(UserError, match="preset 'worst': expected one of best, paper, released_code"):
    default_config("worst")


@pytest.mark.parametrize(
  "key", [key for key in DEFAULTS if key not in FREE | {"evaluation.select"}]
)
def test_every_key_has_a_rule_that_names_it(key):
  """A new key without a rule fails here: give it one, or put it on the list of the free ones."""
  for value in wrong(key, DEFAULTS[key]):
    assert_refused(key, value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value):
  for key, default in DEFAULTS.items():
    if isinstance(default, float):
      assert_refused(key, value)
    elif isinstance(default, list) and isinstance(default[0], float):
      assert_refused(key, [value] * len(default))


@pytest.mark.parametrize("key", DEFAULTS)
def test_no_key_is_hidden_by_what_every_configuration_has(key):
  """config.a.update would be ConfigDict's own method, whatever value the key has."""
  assert not any(hasattr(ConfigDict, name) for name in key.split("."))


@pytest.mark.parametrize("key", SIZES)
def test_a_size_is_one_at_the_least(key):
  assert_refused(key, 0)


@pytest.mark.parametrize(
  "name, refused, taken",
  [
    ("dropout", 1.0, 0.0),
    ("item_dropout", 1.0, 0.0),
    ("b2", 1.0, 0.5),
    ("b2", 0.0, 1e-9),
    ("learning_rate", 0.0, 1e-9),
    ("temperature", 0.0, 1e-9),
    ("gate_temperature", 0.0, 1e-9),
    ("whiten_std", 0.0, 1e-9),
    ("rope_theta", 0.0, 1e-9),
    ("norm_eps", 0.0, 1e-9),
    ("row_length", 1, 2),
    ("batch", 1, 2),
    ("num_items", 1, 2),
    ("semantic_ids.quantizer.codes", 1, 2),
    ("semantic_ids.hidden", [8, 0], [1]),
    ("stages", ["collaborative", "recommend"], ["recommender"]),
    ("evaluation.cutoffs", [0, 10], [10]),
    ("evaluation.cutoffs", [10, 2**31], [2**31 - 1]),
    ("semantic_ids.hidden", [8, 2**17 + 1], [2**17]),
    ("collaborative.row_length", 2**20 + 1, 2**20),
    ("heartbeat_seconds", 10**6, 86_400),
    ("semantic_ids.bandwidths", [0.5, 0.0], [1e-9]),
    ("as_new", 1.0, 0.0),
    ("data.split_at", [0.9, 0.8], [0.1, 0.9]),
    ("data.split_at", [0.0, 0.8], [1e-9, 0.8]),
    ("data.split_at", [0.8, 1.0], [0.8, 0.999]),
    ("data.split_at", [0.8, 0.8], [0.79, 0.8]),
    *((name, -1, 0) for name in ("seed", "whiten", "response", "targets_per_user", "resamples")),
    *((name, -1, 0) for name in ("warmup_steps",)),
    ("save_minutes", -1e-9, 0.0),
    *((name, -1e-9, 0.0) for name in ("weight_decay", "clip", "sinkhorn_epsilon", "commitment")),
    *((f"{kind}_weight", -1e-9, 0.0) for kind in ("reconstruction", "quantization", "alignment")),
  ],
)
def test_the_rules_hold_up_to_the_edge(name, refused, taken):
  keys = [k for k in DEFAULTS if k not in FREE and (k == name or k.endswith(f".{name}"))]
  assert keys
  for key in keys:
    assert_refused(key, refused)
    check_values(changed(key, taken))


def test_a_key_that_does_not_exist_is_refused_with_the_nearest():
  config = valid_config()
  config.recommender.epoch = 3
  with pytest.raises(
    UserError, match="recommender.epoch: no such key; did you mean recommender.epochs"
  ):
    check_values(config)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_meaning_of_one_line(key):
  meaning = KEYS[key].meaning
  assert 0 < len(meaning) <= 100 and "\n" not in meaning
  assert meaning[0].isupper() and meaning.endswith(".")
  assert KEYS[key].rule.text and KEYS[key].rule.accepts(KEYS[key].default)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.dir": ""}, "--config.data.dir is not set"),
    ({"data.source": "synthetic", "data.split": "temporal"}, "catalogue has no times; take leave_"),
    ({"features.collaborative": ""}, "--config.features: every modality is empty"),
    ({"recommender.as_new": 0.1}, "--config.recommender.as_new=0.1: new items need content"),
    ({"collaborative.heads": 3}, "--config.collaborative.heads=3: .*width=128"),
    (
      {"recommender.heads": 4, "recommender.kv_heads": 3},
      "--config.recommender.kv_heads=3: .*heads=4",
    ),
    ({"recommender.head_width": 9}, "--config.recommender.head_width=9: "),
    (
      {"recommender.row_length": 4, "recommender.prompt.response": 4},
      "--config.recommender.row_length=4: .*response=4",
    ),
    (
      {"recommender.rows": 2**20, "recommender.row_length": 2**20},
      "--config.recommender.rows=1048576: .*a batch has 1,099,511,627,776 tokens; .*16,777,216",
    ),
    ({"collaborative.rows": 2**20, "collaborative.row_length": 17}, "collaborative.rows=1048576: "),
    ({"recommender.backbone.kind": "lora"}, "backbone.kind=lora: .*backbone.checkpoint"),
    ({"recommender.prompt.text": "a {items}"}, "prompt.text: .*backbone.checkpoint"),
  ],
)
def test_values_that_do_not_fit_each_other_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    check_values(valid_config(changes=changes))


@pytest.mark.parametrize(
  "changes",
  [
    {"data.source": "synthetic", "data.dir": ""},
    {"features.collaborative": "", "features.text": "text.npy"},
    {"recommender.heads": 4, "recommender.kv_heads": 2},
    {"recommender.row_length": 5, "recommender.prompt.response": 4},
    {"recommender.rows": 16, "recommender.row_length": 2**20},
    {"collaborative.rows": 2**20, "collaborative.row_length": 16},
  ],
)
def test_values_that_fit_each_other_are_taken(changes):
  check_values(valid_config(changes=changes))


def test_modalities_are_those_with_a_source_in_the_order_of_the_configuration():
  config = valid_config(changes={"features.visual": "v.npy", "features.collaborative": "c.npy"})
  assert modalities(config) == ("collaborative", "visual")


def test_identity_leaves_out_only_what_may_differ_between_two_runs():
  free = {"stages", "profile.steps", *LOCATIONS}
  free |= {key for key in DEFAULTS if key.startswith(("run.", "mesh."))}
  whole = identity(valid_config())
  assert whole.keys() == DEFAULTS.keys() - free
  json.dumps(whole)
  for key, value in DEFAULTS.items():
    other = {list: [3], int: 77, float: 0.77, str: "other", bool: not value}[type(value)]
    assert (identity(changed(key, other)) == whole) == (key in free), key


def test_a_saved_configuration_comes_back(tmp_path):
  config = valid_config("paper", {"seed": 3})
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  back = read_config(tmp_path)
  check_values(back)
  assert flatten(back) == flatten(config)
  assert identity(back) == identity(config)


def test_a_workdir_from_before_a_run_key_is_still_read(tmp_path):
  config = json.loads(valid_config().to_json_best_effort())
  del config["mesh"], config["run"]["keep"]
  config["run"]["save_every"] = 7
  (tmp_path / "config.json").write_text(json.dumps(config))
  back = read_config(tmp_path)
  assert (back.mesh.fsdp, back.run.keep, back.run.save_every) == (-1, 2, 7)


def test_a_workdir_from_before_there_were_splits_is_one_of_leave_one_out(tmp_path):
  config = json.loads(valid_config().to_json_best_effort())
  del config["data"]["split"], config["data"]["split_at"]
  del config["recommender"]["as_new"], config["semantic_ids"]["bandwidths"]
  del config["recommender"]["optimizer"]["kind"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  back = read_config(tmp_path)
  check_values(back)
  assert identity(back) == identity(valid_config())
  assert split_at(back) is None
  assert split_at(valid_config(changes={"data.split": "temporal"})) == (0.8, 0.9)


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "no such file"),
    ("{", "not a JSON object"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "not a JSON object"),
    ('{"seed":' * 100_000, "not a JSON object"),
    (
      json.dumps(json.loads(valid_config().to_json_best_effort()) | {"mesh": 1}),
      "mesh",
    ),
    ("{}", "another version of mmesid_jax .collaborative.dropout"),
    (
      json.dumps({**json.loads(valid_config().to_json_best_effort()), "new": 1}),
      "version.*new is on one side",
    ),
  ],
)
def test_a_saved_configuration_that_is_none_is_one_clear_line(tmp_path, text, message):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=f"config.json: .*{message}"):
    read_config(tmp_path)


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def save_with(folder: pathlib.Path, changes: Mapping[str, Any]) -> None:
  """Writes config.json with values that a command line would refuse."""
  saved = json.loads(valid_config().to_json_best_effort())
  for key, value in changes.items():
    *sections, name = key.split(".")
    section = saved
    for part in sections:
      section = section[part]
    section[name] = value
  (folder / "config.json").write_text(json.dumps(saved))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"recommender.width": "abc"}, "recommender.width='abc': expected a whole number"),
    ({"recommender.width": 8.5}, "recommender.width=8.5: expected a whole number"),
    ({"recommender.width": True}, "recommender.width=True: expected a whole number"),
    ({"recommender.width": None}, "recommender.width=None: expected a whole number"),
    ({"recommender.width": -3}, "recommender.width=-3: expected a whole number"),
    ({"recommender.width": [1]}, "recommender.width=.1.: expected a whole number"),
    ({"recommender.width": {}}, "recommender.width: is a section; expected a whole number"),
    ({"recommender.width": {"a": 1}}, "recommender.width: is a section; expected a whole number"),
    ({"recommender": 3}, "recommender=3: expected a section"),
    ({"recommender.backbone": []}, "recommender.backbone=..: expected a section"),
    ({"run": None}, "run=None: expected a section"),
    ({"run.keep": {}}, "run.keep: is a section; expected a whole number"),
    ({"features": "text.npy"}, "features='text.npy': expected a section"),
    ({"features": {}}, "features: every modality is empty"),
    ({"features.text": 5}, "features.text=5: expected a file"),
    ({"features.text": {"a": "b"}}, "features.text: is a section"),
    ({"data.dir": 7}, "data.dir=7: expected a folder"),
    ({"data.split_at": [0.2, "x"]}, "data.split_at=.*: expected two shares"),
    ({"data.split_at": 0.5}, "data.split_at=0.5: expected two shares"),
    ({"evaluation.cutoffs": ["5"]}, "evaluation.cutoffs=.'5'.: expected"),
    ({"stages": "recommender"}, "stages='recommender': expected a non-empty tuple"),
    ({"collaborative.dropout": "nan"}, "collaborative.dropout='nan': expected a number in"),
    ({"collaborative.dropout": float("nan")}, "collaborative.dropout=nan: expected a number in"),
    ({"collaborative.heads": 7}, "collaborative.heads=7: does not divide"),
  ],
)
def test_a_saved_configuration_passes_the_checks_of_a_command_line(tmp_path, changes, message):
  save_with(tmp_path, changes)
  with pytest.raises(UserError, match=f"config.json: {message}"):
    read_config(tmp_path)


@pytest.mark.parametrize(
  "key", [key for key, row in KEYS.items() if isinstance(row.default, float)]
)
def test_numbers_are_those_that_float32_holds(key, tmp_path):
  """An int of any size would end in an overflow later on, a float in inf or 0."""
  rule = KEYS[key].rule
  for value in (1, 10**30, 10**39, 10**400, 1e-39, 1e39, 1e308):
    save_with(tmp_path, {key: value})
    try:
      back = flatten(read_config(tmp_path))[key]
    except UserError as error:
      assert f"config.json: {key}={value!r}: " in str(error)
      continue
    assert type(back) is float and back < 2**128
    assert back > 2.0**-126 or rule.accepts(0) or "a number in" in rule.text


@pytest.mark.parametrize("text", [DEEP, '{"a.b": 1}', '{"": 1}', "null", "3", '{"items": 1}'])
def test_json_that_is_no_configuration_is_one_clear_line(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json: "):
    read_config(tmp_path)


@pytest.mark.filterwarnings("ignore:the load_module")  # how ml_collections loads a file
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_config_file_loads_locked_and_valid(file, preset, tmp_path):
  """By the flag that the entry points define."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
  values(["train", f"--config={file}:{preset}"])
  config = values.config
  assert config.is_locked and config.preset == preset
  assert flatten(config).keys() == DEFAULTS.keys()
  config.data.dir = "somewhere"
  if config.recommender.backbone.kind != "full":
    write_tiny_checkpoint(tmp_path / "base")
    config.recommender.backbone.checkpoint = str(tmp_path / "base")
    backbone.resolve_sizes(config)
  fit_sizes_to_data(config, lambda _: (22_363, 12_101, 198_502))  # Amazon Beauty
  check_values(config)
  with pytest.raises(AttributeError):
    config.recommender.epoch = 3


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_config_file_without_a_preset_is_the_best_one(file):
  get_config = runpy.run_path(str(file))["get_config"]
  assert flatten(get_config()) == flatten(get_config("best"))


def test_a_preset_of_beauty_is_the_default_one_with_text_fewer_epochs_and_its_own_rows():
  for preset in PRESETS:
    config = runpy.run_path(str(ROOT / "configs/beauty.py"))["get_config"](preset)
    expected = default_config(preset)
    expected.features.text, expected.recommender.epochs = "text.npy", 4
    expected.collaborative.update(rows=32, row_length=64)  # which cuts 0.3 % of Beauty's users
    assert flatten(config) == flatten(expected)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_docstring_of_a_config_file_is_a_command_that_exists(file):
  docstring = ast.get_docstring(ast.parse(file.read_text()))
  modules = re.findall(r"python -m (\S+)", docstring)
  named = re.findall(r"--config=([\w./]+)(?::(\w+))?", docstring)
  assert modules and named
  assert all(importlib.util.find_spec(module) for module in modules)
  assert {ROOT / path for path, _ in named} == {file}
  assert {preset for _, preset in named} <= {"", *PRESETS}
  for key in re.findall(r"--config\.([\w.]+)=", docstring):
    assert key in DEFAULTS
