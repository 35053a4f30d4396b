"""The command plan: what it prints, and that it needs and leaves nothing."""

import json
import pathlib
import re
import runpy

import numpy as np
import pytest
import safetensors.numpy
from commands import refused, run

from mmesid_jax.config.presets import PROMPTS
from mmesid_jax.data.dataset import prepare_dataset, read_dataset
from mmesid_jax.data.features import feature_width
from mmesid_jax.errors import UserError
from mmesid_jax.hf.prompt import estimate_prompt_lengths
from mmesid_jax.parallel.mesh import device_count, make_mesh
from mmesid_jax.planning import plan_report, tpu_compiler
from mmesid_jax.stages import recommender_stage

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "beauty_llama3_8b.py"
LLAMA3_8B = {
  **{"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "head_dim": 128},
  **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
  **{"intermediate_size": 14_336, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
}


@pytest.fixture
def llama3(trained, tmp_path):
  """configs/beauty_llama3_8b.py on the synthetic catalogue, its checkpoint a config.json alone."""
  folder = tmp_path / "llama3-8b"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(LLAMA3_8B))
  config = runpy.run_path(str(CONFIG))["get_config"]()
  config.data.dir = str(trained / "synthetic")
  config.recommender.backbone.checkpoint = str(folder)
  return config


def planned(config, kind="h200", devices=("1",), mfu=0.4, rows_per_device=None) -> None:
  plan_report.print_plan(config, kind, devices=devices, mfu=mfu, rows_per_device=rows_per_device)


def gib(out: str, part: str) -> float:
  return float(re.search(rf"^{part} +([\d.]+)", out, re.MULTILINE)[1])


def files(folder: pathlib.Path):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_llama3_8b_by_its_config_alone(llama3, tmp_path, capsys):
  before = files(tmp_path), files(pathlib.Path(llama3.data.dir))
  planned(llama3)
  out = capsys.readouterr().out
  projections = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14_336)
  norms, prompt = 65 * 4096, 39 * 4096
  frozen = 2 * (projections + norms) + 4 * prompt
  assert gib(out, "frozen backbone") == pytest.approx(frozen / 2**30, abs=1e-3)
  assert gib(out, "LoRA") == pytest.approx(4 * 32 * 3 * 8 * (4096 + 14_336) / 2**30, abs=1e-3)
  assert gib(out, "memory") == pytest.approx(141e9 / 2**30, abs=1e-3)
  assert "about 34 tokens before the items and 5 after them" in out
  in_blend = float(re.search(r"in the blend, with the network ([\d.]+) GiB", out)[1])
  network = ("frozen backbone", "LoRA", "other trained parameters", "tables")
  assert in_blend == pytest.approx(sum(gib(out, part) for part in network), abs=3e-3)
  assert before == (files(tmp_path), files(pathlib.Path(llama3.data.dir)))


def test_weights_as_codes_fit_where_bfloat16_does_not(llama3, capsys):
  planned(llama3, "v5e")
  assert "fits: no" in capsys.readouterr().out
  llama3.recommender.backbone.weights, llama3.recommender.backbone.remat = "nf4", "layers"
  planned(llama3, "v5e")
  out = capsys.readouterr().out
  assert "fits: yes" in out and 3.4 < gib(out, "frozen backbone") < 3.6


def test_meshes_that_do_not_divide_stand_beside_their_reason(llama3, capsys):
  llama3.mesh.fsdp, llama3.mesh.tensor = 1, 2
  planned(llama3, devices=("2", "16"))
  table = capsys.readouterr().out.partition("devices  data")[2].splitlines()[1:]
  assert len([line for line in table if line.split()[:1] == ["2"]]) == 3
  sixteen = [line for line in table if line.split()[:1] == ["16"]]
  refusals = [line for line in sixteen if " not " in line]
  assert len(refusals) == 1 and refusals[0].count(" x ") == 2 * 5
  assert "rows=8 does not divide by mesh.data * mesh.fsdp = 16" in refusals[0]
  assert len(sixteen) == 1 + 3  # with tensor 2, 4 and 8 the rows divide


def test_the_batch_grows_with_the_devices_if_asked_to(llama3, capsys):
  planned(llama3, devices=("8",), rows_per_device=2)
  out = capsys.readouterr().out
  assert "a batch: 16 rows of 512" in out and "does not divide" not in out
  rows = {
    line.split()[3]: line.split()[4]
    for line in out.splitlines()
    if line.split()[:1] == ["8"] and "not" not in line
  }
  assert rows == {"1": "16", "2": "8", "4": "4", "8": "2"}


def test_an_epoch_is_what_training_packs(tiny, trained, capsys):
  """Synthetic, so made for the plan alone; two microbatches are one step."""
  config = tiny("best", {"recommender.microbatches": 2})
  planned(config)
  out = capsys.readouterr().out
  assert "60 users, 40 items, vectors: collaborative 8, text 8." in out
  assert "Evidence" not in out  # its stages do not run
  steps = int(re.search(r"An epoch: (\d+) steps", out)[1])
  batches, counts = recommender_stage.make_batches(config, read_dataset(trained / "synthetic"))
  assert f"steps, {counts.targets:,} targets, " in out
  assert steps == -(-batches.epoch().batches // 2) > 1


def test_time_is_operations_by_what_devices_do(llama3, capsys):
  found = []
  for devices, mfu in (("1", 0.4), ("4", 0.2)):
    planned(llama3, devices=(devices,), mfu=mfu)
    out = capsys.readouterr().out
    tera, seconds = re.search(r"A step: ([\d.]+) TFLOP, ([\d.]+) ms", out).groups()
    assert float(tera) / (989.4 * int(devices) * mfu) == pytest.approx(
      float(seconds) / 1e3, rel=0.01
    )
    found.append(tera)
  assert found[0] == found[1]


def test_what_the_compiler_says_stands_beside_the_prediction(tiny, monkeypatch, capsys):
  """A stand-in for the compiler; tests/planning/test_tpu_compiler.py runs the real one."""
  said = tpu_compiler.CompiledStep("splash", {"arguments": 2**30, "temporaries": 3 * 2**29})
  asked = []

  def compiled(config, dataset, widths, layout):
    asked.append((device_count(), config.recommender.rows, layout.rows))
    return said

  monkeypatch.setattr(tpu_compiler, "check_compiler", lambda kind: None)
  monkeypatch.setattr(tpu_compiler, "make_tpu_mesh", lambda kind, shape: make_mesh(**shape))
  monkeypatch.setattr(tpu_compiler, "compile_step", compiled)
  config = tiny("best", {"mesh.fsdp": 4})
  options = {"devices": ("4",), "mfu": 0.4, "rows_per_device": 2, "compiled": True}
  plan_report.print_plan(config, "v5e", **options)
  out = capsys.readouterr().out.partition("By the compiler for TPUs")[2]
  assert "(4 of v5e:2x2, attention: splash; " in out and asked == [(4, 8, 8)]
  assert (gib(out, "arguments"), gib(out, "temporaries"), gib(out, "sum")) == (1, 1.5, 2.5)
  said = tpu_compiler.CompiledStep("xla", {}, "out of memory")
  plan_report.print_plan(config, "v5e", **options)
  assert "attention: xla) refuses: out of memory" in capsys.readouterr().out


def test_mistakes_are_one_line(llama3, tmp_path):
  for options, said in (
    ({"kind": "a100"}, "--device=a100: did you mean a100-40g or a100-80g?"),
    ({"devices": ("8", "x")}, "--devices: 'x' is not"),
    ({"mfu": 40}, "--mfu=40: expected"),
    ({"rows_per_device": 0}, "--rows_per_device=0: expected"),
    ({"devices": ("16",)}, "rows=8 does not divide by mesh.data * mesh.fsdp = 16"),
  ):
    with pytest.raises(UserError, match=re.escape(said)):
      planned(llama3, **options)
  llama3.mesh.data, llama3.evaluation.targets = 4, 6
  with pytest.raises(UserError, match="evaluation.targets=6 does not divide by mesh.data = 4"):
    planned(llama3, devices=("4",))
  llama3.data.dir = str(tmp_path / "nothing")
  with pytest.raises(UserError, match="nothing: no such directory"):
    planned(llama3)


@pytest.mark.parametrize("key", ["recommender.row_length", "data.synthetic.num_users"])
def test_a_size_without_end_is_one_line(key):
  """Before anything of this size is made, here to fit the size of a batch to the data."""
  huge = f"--config.{key}={10**30}"
  error = refused(
    "plan", "--config=quickstart", "--device=h200", "--config.evaluation.targets=0", huge
  )
  assert f"{huge}: expected a whole number from " in error


def test_from_the_command_line(llama3, tmp_path):
  plan = f"--config={CONFIG}", f"--config.data.dir={llama3.data.dir}"
  assert "--device is missing" in refused("plan", *plan)
  assert "did you mean h200" in refused("plan", *plan, "--device=h20")
  assert "h200 is no TPU" in refused("plan", *plan, "--device=h200", "--compile")
  folder = llama3.recommender.backbone.checkpoint
  status, out, err = run(
    *("plan", *plan, f"--config.recommender.backbone.checkpoint={folder}"),
    *("--device=a100-40g", "--devices=1,2", "--mfu=0.3"),
  )
  assert status == 0, err
  assert "fits: yes" in out and "MFU of 30%" in out


def test_a_prompt_is_estimated_by_its_words():
  assert estimate_prompt_lengths(PROMPTS["paper"]) == {
    "length": 34,
    "response": 5,
  }  # the true counts
  assert estimate_prompt_lengths("Buy 12 things: {items}") == {"length": 5, "response": 0}
  with pytest.raises(UserError, match="once"):
    estimate_prompt_lengths("no items")


def test_a_data_set_is_read_as_it_would_be_prepared(trained, tmp_path):
  data = trained / "synthetic"
  ours, prepared = read_dataset(data), prepare_dataset(data, tmp_path / "cache")
  assert ours.num_items == prepared.num_items == 40
  for name in ("items", "offsets", "users"):
    np.testing.assert_array_equal(getattr(ours, name), getattr(prepared, name))


def test_a_table_is_known_by_its_header(tmp_path):
  """Values are not looked at: these would be refused."""
  table = np.full((5, 3), np.nan, np.float32)
  np.save(tmp_path / "x.npy", table)
  safetensors.numpy.save_file({"x": table}, tmp_path / "x.safetensors")
  for name in ("x.npy", "x.safetensors"):
    assert feature_width(tmp_path / name, 4) == 3
    with pytest.raises(UserError, match=f"{name}: 5 rows; expected 4"):
      feature_width(tmp_path / name, 3)
  with pytest.raises(UserError, match="no such file"):
    feature_width(tmp_path / "y.npy", 4)
