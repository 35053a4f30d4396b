"""The commands as a user types them: mistakes are one line and status 2, and leave nothing."""

import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, refused, run, start

from mmesid_jax import __version__
from mmesid_jax.__main__ import COMMANDS
from mmesid_jax.config.schema import flatten


def train(workdir: pathlib.Path, data: pathlib.Path, *more: str) -> tuple[str, ...]:
  return (
    "--config=configs/beauty.py",
    f"--workdir={workdir}",
    f"--config.data.dir={data}",
    "--config.features.text=",
    *more,
  )


def run_code(*lines: str) -> str:
  """The output of a Python program, which must succeed."""
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_every_command_explains_itself():
  """First line, two examples with flags that exist, every flag in a group, jax not loaded."""
  output = run_code(
    "import os, sys",
    "from mmesid_jax.__main__ import COMMANDS, main",
    "for name in COMMANDS:",
    "  print(chr(0) + name, flush=True)",
    "  if not os.fork():",
    "    sys.argv[1:] = [name, '-h']",
    "    try: main()",
    "    finally: assert 'jax' not in sys.modules and 'numpy' not in sys.modules",
    "  assert os.wait()[1] == 0, name",
  )
  pages = dict(page.split("\n", 1) for page in output.split("\0")[1:])
  assert [*pages] == [*COMMANDS]
  for name, page in pages.items():
    first, _, rest = page.partition("\n\nExamples:\n")
    assert first.endswith(".") and "\n" not in first and len(first) <= 90, first
    examples, _, rest = rest.partition("\n\n")
    examples = examples.replace("\\\n", " ").splitlines()
    assert len(examples) >= 2, name
    known = set(re.findall(r"^  --(?:\[no\])?(\w+)", rest, re.MULTILINE))
    for example in examples:
      words = shlex.split(example)
      assert words[:3] == ["python", "-m", f"mmesid_jax.{name}"]
      used = {re.split("[=.]", word[2:])[0] for word in words if word.startswith("--")}
      assert used and used <= known, example
    assert "Other:" not in rest, name
    assert max(map(len, page.splitlines())) <= 100, name


def test_every_number_flag_has_a_finite_range():
  """nan and infinity are refused for all flags together, see tests/config/test_command_line.py."""
  output = run_code(
    "import importlib, math, os",
    "from absl import flags",
    "from mmesid_jax.__main__ import COMMANDS",
    "for command in COMMANDS:",
    "  if not os.fork():",
    "    importlib.import_module('mmesid_jax.' + command)",
    "    for module, own in flags.FLAGS.flags_by_module_dict().items():",
    "      for flag in own if module.startswith('mmesid_jax.') else ():",
    "        if isinstance(flag.parser, flags.IntegerParser | flags.FloatParser):",
    "          bounds = flag.parser.lower_bound, flag.parser.upper_bound",
    "          assert all(b is not None and math.isfinite(b) for b in bounds), flag.name",
    "          print(command, flag.name, flush=True)",
    "    os._exit(0)",
    "  assert os.wait()[1] == 0, command",
  )
  assert {"fetch_images timeout", "recommend top_k", "train processes"} <= {*output.splitlines()}


def test_the_commands_are_listed_and_run_by_name():
  def call(*words):
    done = subprocess.run(
      [sys.executable, "-m", "mmesid_jax", *words], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr

  status, out, err = call()
  assert (status, err) == (0, "")
  assert [line.split()[0] for line in out.splitlines() if line[:2] == "  "] == [*COMMANDS]
  assert call("help") == (status, out, err)
  assert call("fetch", "--data=x") == (2, "", MISTYPED)
  assert call("--version")[1] == call("train", "--version")[1] == f"mmesid_jax {__version__}\n"
  assert call("train")[2] == "error: --config and --workdir are missing; they must be given\n"
  assert "Examples:" in call("help", "export")[1]


MISTYPED = "error: fetch: no such command; did you mean fetch_images?\n"
MISSING = {
  "train": "--config and --workdir are missing",
  "plan": "--config and --device are missing",
  "prepare": "one of --output, --check, --tfds is missing",
  "recommend": "--workdir and one of --history, ",
  "encode": "--data, --modality and --model are missing",
  "cold_start": "--config and --workdir are missing",
  "ablate": "--config, --results and --workdir are missing",
}


@pytest.mark.parametrize("command", MISSING)
def test_without_arguments_all_that_is_missing_is_named(command):
  assert refused(command).startswith(f"error: {MISSING[command]}")


@pytest.mark.parametrize(
  ("command", "config"),
  [("train", "prepare"), ("plan", "ablations"), ("cold_start", "prepare")]
  + [("ablate", "beauty"), ("prepare", "beauty")],
)
def test_a_configuration_of_another_command_is_called_one(command, config):
  line = refused(command, f"--config={config}", "--workdir=x", "--device=h100", "--output=x")
  assert f"--config={config}: is a configuration for the command " in line


SEQUENCES = {
  "not a number": ("1 2 3 4\n2 3 x 4\n", "sequences.txt:2"),
  "out of range": ("1 2 3 4\n2 3 99 4\n", "sequences.txt:2"),
  "a user twice": ("1 2 3 4\n1 3 5 4\n", "sequences.txt:2"),
  "nothing": ("", "sequences.txt"),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_bad_sequences_are_named_by_file_and_line(tmp_path, kind):
  text, where = SEQUENCES[kind]
  data = tmp_path / "data"
  data.mkdir()
  (data / "sequences.txt").write_text(text)
  (data / "items.jsonl").write_text("".join(f'{{"item_id": {i}}}\n' for i in range(1, 6)))
  assert f"{data}/{where}" in refused("train", *train(tmp_path / "run", data))
  assert not list(tmp_path.rglob("*.safetensors"))


def test_mistakes_on_the_command_line_are_one_line(trained, tmp_path):
  assert "no such" in refused("train", *train(tmp_path / "run", tmp_path / "missing"))
  line = refused("train", *train(tmp_path / "run", tmp_path, "--config.recommender.lr=1"))
  assert "did you mean recommender.learning_rate" in line or "recommender.optimizer" in line
  line = refused("train", *train(tmp_path / "run", tmp_path, "--config.recommender.dropout=1.5"))
  assert "--config.recommender.dropout=1.5: expected a number in [0, 1)" in line
  (tmp_path / "file").write_text("")
  line = refused("train", *train(tmp_path / "file" / "run", trained / "synthetic"))
  assert str(tmp_path / "file") in line
  assert "config.json" in refused("evaluate", f"--workdir={tmp_path / 'nowhere'}")
  for item in (41, -(10**30)):
    assert f"item {item} is not in the catalogue" in refused(
      "recommend", f"--workdir={trained}", f"--history=1 {item}"
    )
  assert "'x' is not a whole number" in refused(
    "recommend", f"--workdir={trained}", "--history=1 x"
  )
  assert "--user: is empty; expected" in refused("recommend", f"--workdir={trained}", "--user=")
  line = refused("train", *train(trained, trained / "synthetic"))
  assert "holds another experiment" in line and "--overwrite" in line


def test_a_truncated_artifact_is_named_with_the_stage_to_run(workdir):
  file = workdir / "recommender.safetensors"
  file.write_bytes(file.read_bytes()[:1000])
  line = refused("recommend", f"--workdir={workdir}", "--history=1")
  assert str(file) in line and "with the stage recommender" in line


def test_recommend_prints_lists_for_people_and_json_lines_for_programs(trained, tmp_path):
  status, out, err = run("recommend", f"--workdir={trained}", "--user=1,2", "--top_k=3")
  assert status == 0, err
  assert out.count("had:") == 2 and out.count("score") == 6 and "no. " in out  # titles
  file = tmp_path / "histories.txt"
  file.write_text("1 2 3\n\n7\n")
  status, out, err = run("recommend", f"--workdir={trained}", f"--histories={file}", "--top_k=2")
  assert status == 0, err
  answers = [json.loads(line) for line in out.splitlines()]
  assert [a["history"] for a in answers] == [[1, 2, 3], [], [7]]
  assert all({"item", "title", "score", "parts"} == r.keys() for a in answers for r in a["items"])


def test_evaluate_prints_a_table_and_writes_it(workdir):
  status, out, err = run("evaluate", f"--workdir={workdir}", "--split=valid")
  assert status == 0, err
  assert out.count("MME-SID") == 2
  assert json.loads((workdir / "evaluation_valid.json").read_text())["split"] == "valid"


def test_ablate_names_what_is_wrong_and_makes_a_table_without_a_workdir(tmp_path):
  plan = ("--config=configs/ablations.py", f"--results={tmp_path}")
  assert "--workdir is missing" in refused("ablate", *plan)
  line = refused("ablate", *plan, f"--workdir={tmp_path}", "--variants=base,no_code")
  assert "--variants=no_code: unknown; did you mean no_codes?" in line
  for flag in ("--variants=no_codes", "--seeds=7"):
    assert f"{flag.split('=')[0]}: not with --table" in refused("ablate", *plan, "--table", flag)
  line = refused("ablate", *plan, f"--workdir={tmp_path}")
  assert "--config.base.data.dir is not set" in line and "variant" not in line
  assert f"--results={tmp_path}: holds no result of" in refused("ablate", *plan, "--table")
  assert not list(tmp_path.iterdir())
  shutil.copy("results/ablations/popularity-seed0.json", tmp_path)
  status, out, err = run("ablate", *plan, "--table")
  assert status == 0, err
  assert (
    "seed 0: base, frozen_codes, fsq" in out and (tmp_path / "table.md").read_text().strip() in out
  )


def test_semantic_ids_have_no_split(tmp_path):
  line = refused("evaluate", f"--workdir={tmp_path}", "--stage=semantic_ids", "--split=valid")
  assert "--split: belongs to --stage=recommender" in line


def test_evaluate_examines_the_semantic_ids_in_a_page(workdir):
  command = ("evaluate", f"--workdir={workdir}", "--stage=semantic_ids")
  status, out, err = run(*command)
  assert status == 0, err
  assert "perplexity" in out and "effective rank" in out
  assert json.loads((workdir / "semantic_ids.json").read_text())["num_items"] == 40
  assert "<!DOCTYPE html>" in (workdir / "semantic_ids.html").read_text()
  (workdir / "semantic_ids.safetensors").unlink()
  assert f"{workdir}/semantic_ids.safetensors: no such file" in refused(*command)
  line = refused("evaluate", f"--workdir={workdir}", "--stage=semantic")
  assert "--stage=semantic: " in line or "stage" in line


def test_ctrl_c_saves_says_where_and_the_same_command_goes_on(trained, tiny, tmp_path):
  data = shutil.copytree(trained / "synthetic", tmp_path / "data")
  sizes = {k: v for k, v in flatten(tiny()).items() if k.startswith("collaborative.")}
  sizes["collaborative.epochs"] = 2000
  small = [f"--config.{key}={value}" for key, value in sizes.items()]
  only = ["--config.stages=('collaborative',)", "--config.run.save_every=5"]
  command = train(tmp_path / "run", data, *small, *only)
  process = start("train", *command)
  steps = tmp_path / "run" / "collaborative" / "steps"
  deadline = time.monotonic() + 200
  while not list(steps.glob("[1-9]*")) and time.monotonic() < deadline:
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=100)
  assert process.returncode == 75, err
  last = err.strip().splitlines()[-1]
  assert last.startswith("stopped: SIGINT at step") and "run the same command again" in last
  assert str(tmp_path / "run" / "collaborative") in last
