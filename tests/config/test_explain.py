"""The texts about the keys: `train --explain` and the documentation's page."""

import pathlib
import subprocess
import sys

import pytest

from mmesid_jax.config import default_config
from mmesid_jax.config.explain import allowed_values, documentation, explain
from mmesid_jax.config.schema import KEYS
from mmesid_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def block(text: str, key: str) -> list[str]:
  """The lines about a key."""
  lines = text.splitlines()
  start = next(n for n, line in enumerate(lines) if line[2:].startswith(f"{key} = "))
  return lines[start : start + 3]


def test_everything_is_explained():
  text = explain(default_config())
  for key, row in KEYS.items():
    head, meaning, values = block(text, key)
    assert head.startswith("  ") and meaning.strip() == row.meaning
    assert allowed_values(key, row) in values
  assert not [line for line in text.splitlines()[1:] if line.startswith("*")]


@pytest.mark.parametrize(
  ("prefix", "keys"),
  [
    ("recommender.prompt", {k for k in KEYS if k.startswith("recommender.prompt.")}),
    ("seed", {"seed"}),
    ("recommender.width", {"recommender.width"}),
    ("recommender.l", None),
    ("recommender.prompt.", None),
    ("nonsense", None),
  ],
)
def test_a_prefix_is_a_section_or_a_key(prefix, keys):
  if keys is None:
    with pytest.raises(
      UserError, match=f"--explain={prefix}: no such key or section; did you mean"
    ):
      explain(default_config(), prefix)
  else:
    text = explain(default_config(), prefix)
    assert {k for k in KEYS if f"\n  {k} = " in text} == keys


def test_changes_and_what_the_preset_sets_are_marked():
  config = default_config("paper")
  config.recommender.whiten, config.collaborative.width = 64, 8
  config.semantic_ids.hidden = (4, 4)
  text = explain(config)
  assert text.startswith("preset paper")
  assert block(text, "recommender.whiten")[0] == "* recommender.whiten = 64"
  assert (
    "default 128; preset 0; allowed: a whole number from 0 to "
    in block(text, "recommender.whiten")[2]
  )
  assert block(text, "collaborative.width")[0] == "* collaborative.width = 8"
  assert "preset" not in block(text, "collaborative.width")[2]
  assert block(text, "recommender.encoder")[0] == "* recommender.encoder = mlp"
  assert block(text, "semantic_ids.hidden")[0] == "* semantic_ids.hidden = 4,4"
  assert block(text, "seed")[0] == "  seed = 0"


def test_the_page_has_every_key_once_and_the_presets():
  page = documentation()
  for key, row in KEYS.items():
    (line,) = [line for line in page.split("## Presets")[0].splitlines() if f"| `{key}` |" in line]
    assert line.endswith(f"| {row.meaning} |") and line.count("|") == 5
  assert "| `recommender.encoder` | `tied` | `mlp` | `mlp` |" in page


def run_train(*arguments: str) -> subprocess.CompletedProcess:
  """The command, where jax cannot be imported."""
  code = (
    "import runpy, sys\nsys.modules['jax'] = None\n"
    "runpy.run_module('mmesid_jax.train', run_name='__main__', alter_sys=True)"
  )
  command = [sys.executable, "-c", code, *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_train_explains_without_a_workdir_and_without_jax():
  result = run_train("--explain=recommender.prompt")
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.rstrip() == explain(default_config(), "recommender.prompt")
  result = run_train("--config=configs/beauty.py:paper", "--config.seed=3", "--explain")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("preset paper") and "\n* seed = 3\n" in result.stdout
  assert {k for k in KEYS if f" {k} = " in result.stdout} == KEYS.keys()
  result = run_train("--explain=recommender.promt")
  assert result.returncode == 2
  assert result.stderr == (
    "error: --explain=recommender.promt: no such key or section; did you mean recommender.prompt?\n"
  )


@pytest.mark.parametrize("file", ["beauty.py", "beauty.py:paper"])
def test_a_preset_is_chosen_with_the_file_alone(file):
  """Set on the command line, it would be recorded and change nothing."""
  result = run_train(f"--config=configs/{file}", "--config.preset=paper", "--workdir=nowhere")
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith(
    "error: --config.preset cannot be set; choose the preset with the"
  )
  assert result.stderr.count("\n") == 1


def test_a_modality_may_have_any_name_and_other_names_stay_mistakes():
  command = ("--config=configs/beauty.py", "--explain=features")
  result = run_train(*command, "--config.features.audio=audio.npy")
  assert result.returncode == 0, result.stderr
  assert "\n* features.audio = audio.npy\n" in result.stdout
  mistakes = dict.fromkeys(("feature.audio", "features.a.b", "audio"), "no such key")
  mistakes |= dict.fromkeys(
    ("features.update", "features.Audio-1"), "expected a name of lower-case"
  )
  for key, message in mistakes.items():
    result = run_train(*command, f"--config.{key}=audio.npy")
    assert result.returncode == 2 and f"--config.{key}: {message}" in result.stderr, key
