"""Real processes, joined by gloo: they train what one would, stop together, and go on."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 400  # for anything here, on a busy machine

SMALL = {
  "data.synthetic.num_users": 120,
  "data.synthetic.num_items": 60,
  "features.visual": "",
  "collaborative.width": 16,
  "collaborative.layers": 1,
  "collaborative.epochs": 2,
  "semantic_ids.hidden": 32,
  "semantic_ids.batch": 32,
  "semantic_ids.epochs": 2,
  "semantic_ids.validate_every_epochs": 1,
  "semantic_ids.quantizer.codes": 8,
  "semantic_ids.quantizer.levels": 2,
  "run.steps_at_once.semantic_ids": 2,
  "mesh.fsdp": -1,
  "recommender.width": 16,
  "recommender.layers": 1,
  "recommender.mlp_width": 32,
  "recommender.whiten": 16,
  "recommender.epochs": 2,
}
ONE_STAGE = {"stages": "collaborative", "collaborative.epochs": 40, "run.log_every": 1}


def command(workdir: pathlib.Path, changes) -> list[str]:
  keys = [f"--config.{key}={value}" for key, value in {**SMALL, **changes}.items()]
  train = [sys.executable, "-m", "mmesid_jax.train", "--config=configs/quickstart.py"]
  return [*train, f"--workdir={workdir}", *keys]


def environment(devices: int) -> dict[str, str]:
  return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def start(workdir, processes: int, devices: int = 1, **changes) -> subprocess.Popen:
  """The launcher with so many processes of so many devices each, or the bare command for one."""
  launcher = [str(ROOT / "launch/local.sh"), str(processes)] if processes > 1 else []
  return subprocess.Popen(
    [*launcher, *command(workdir, changes)],
    cwd=ROOT,
    env=environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def ended(process: subprocess.Popen, status: int) -> str:
  """What it printed. Fails where it ends otherwise."""
  try:
    printed, _ = process.communicate(timeout=SECONDS)
  finally:
    process.kill()
  assert process.returncode == status, printed[-3000:]
  return printed


def until_step(workdir: pathlib.Path, step: int) -> None:
  """Waits until the log of the first stage has come so far."""
  log, end = workdir / "collaborative" / "metrics.jsonl", time.monotonic() + SECONDS
  while time.monotonic() < end:
    lines = log.read_text().splitlines() if log.exists() else []
    if lines and json.loads(lines[-1])["step"] >= step:
      return
    time.sleep(0.2)
  pytest.fail(f"{log}: never came to step {step}")


def children(process: subprocess.Popen) -> list[int]:
  """Process ids of what a launcher started, the first one first."""
  listed = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
  return [int(pid) for pid in listed.split()]


def metrics(workdir: pathlib.Path) -> dict[str, float]:
  models = json.loads((workdir / "evaluation.json").read_text())["models"]
  return {
    f"{model} {protocol} {name}": value["mean"]
    for model, protocols in models.items()
    for protocol, found in protocols.items()
    for name, value in found.items()
  }


def same(ours: pathlib.Path, theirs: pathlib.Path, stage: str) -> bool:
  """Whether the stage's artifacts are equal to the last bit."""
  a, b = (load_file(path / f"{stage}.safetensors") for path in (ours, theirs))
  return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_what_one_does(tmp_path, processes):
  """The same mesh, in one process and in several."""
  ended(start(tmp_path / "one", 1, processes), 0)
  ended(start(tmp_path / "several", processes), 0)
  assert metrics(tmp_path / "several") == pytest.approx(metrics(tmp_path / "one"), abs=1e-6)


def stopped_at_one_step(printed: str) -> None:
  told = re.findall(r"stopped: SIGTERM at step (\d+) of", printed)
  assert len(told) == 2 and len(set(told)) == 1, printed[-3000:]  # one a process


def test_a_signal_to_one_stops_all_at_one_step_and_the_rest_is_bit_equal(tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  ended(start(whole, 2, **ONE_STAGE), 0)
  run = start(stopped, 2, **ONE_STAGE)
  until_step(stopped, 5)
  os.kill(children(run)[1], signal.SIGTERM)
  stopped_at_one_step(ended(run, 75))
  run = start(stopped, 2, **ONE_STAGE)  # and again, with fewer looks behind it than steps
  until_step(stopped, 20)
  os.kill(children(run)[0], signal.SIGTERM)
  stopped_at_one_step(ended(run, 75))
  assert not (stopped / "collaborative.safetensors").exists()
  ended(start(stopped, 2, **ONE_STAGE), 0)
  assert same(stopped, whole, "collaborative")


def test_without_a_launcher_the_others_notice_by_themselves(tmp_path):
  with socket.socket() as free:
    free.bind(("", 0))
    port = free.getsockname()[1]
  flags = [f"--coordinator=localhost:{port}", "--processes=2"]
  changes = {**ONE_STAGE, "collaborative.epochs": 400, "run.heartbeat_seconds": 10}
  runs = [
    subprocess.Popen(
      [*command(tmp_path, changes), *flags, f"--process={index}"],
      cwd=ROOT,
      env=environment(1),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  until_step(tmp_path, 3)
  runs[1].kill()
  try:
    printed, _ = runs[0].communicate(timeout=60)
  finally:
    runs[0].kill()
  assert runs[0].returncode != 0, printed[-3000:]
  assert runs[1].wait() == -signal.SIGKILL


@pytest.mark.parametrize("later", [1, 2])
def test_a_lost_process_ends_all_and_any_number_goes_on(tmp_path, later):
  changes = {**ONE_STAGE, "run.save_every": 5, "run.heartbeat_seconds": 10}
  run = start(tmp_path, 2, **changes)
  until_step(tmp_path, 12)
  os.kill(children(run)[1], signal.SIGKILL)
  killed = time.monotonic()
  printed = ended(run, 137)
  assert time.monotonic() - killed < 60
  assert "process 1 of 2 was lost: status 137" in printed
  names = [path.name for path in (tmp_path / "collaborative" / "steps").iterdir()]
  assert any(name.isdecimal() and int(name) >= 5 for name in names)  # others are half written
  printed = ended(start(tmp_path, later, **changes), 0)
  logged = (tmp_path / "collaborative" / "metrics.jsonl").read_text().splitlines()
  steps = [line["step"] for line in map(json.loads, logged) if "loss" in line]
  assert steps == sorted(set(steps)), "a step was logged twice"
  assert "collaborative: wrote" in printed
