"""What launch/ holds is clean, and says what the package reads."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
import yaml

from mmesid_jax.display import reporter
from mmesid_jax.errors import Diverged, Interrupted, UserError
from mmesid_jax.parallel import processes

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted({*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")})
BIN = pathlib.Path(sys.executable).parent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
  subprocess.run([BIN / "shellcheck", script], check=True)


def test_yaml_is_clean():
  subprocess.run([BIN / "yamllint", "--strict", LAUNCH], check=True, cwd=ROOT)


def test_the_job_set_sets_what_a_process_reads():
  job_set = yaml.safe_load((LAUNCH / "gke_gpu_jobset.yaml").read_text())
  (replicated,) = job_set["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  environment = {variable["name"]: variable for variable in container["env"]}
  assert environment.keys() == {processes.COORDINATOR, processes.PROCESSES, processes.PROCESS}
  count = int(environment[processes.PROCESSES]["value"])
  assert job["parallelism"] == job["completions"] == count
  host, port = environment[processes.COORDINATOR]["value"].split(":")
  name = job_set["metadata"]["name"]
  assert host == f"{name}-{replicated['name']}-0-0.{name}"  # pod 0, as JobSet names it
  assert {"containerPort": int(port)} in container["ports"]
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [UserError.status, Diverged.status]


@pytest.mark.parametrize("status", [0, UserError.status, Diverged.status, 1, Interrupted.status])
def test_slurm_queues_again_what_another_try_helps(tmp_path, status):
  """With stand-ins: srun runs one process and tells of another that was killed along with it."""
  stand_ins = {
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; SLURM_PROCID=0 "$@" || exit 137',
    "scontrol": f'echo scontrol "$@" >> {tmp_path}/called',
    "python": f'echo python "$@" >> {tmp_path}/called; exit {status}',
  }
  for name, body in stand_ins.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)
  variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
  variables.pop("SLURM_RESTART_COUNT", None)
  command = ["bash", LAUNCH / "slurm.sbatch", "--config=a b.py"]
  found = subprocess.run(command, env=variables, cwd=tmp_path, check=False)
  assert found.returncode == status
  called = (tmp_path / "called").read_text()
  assert "python -m mmesid_jax.train --config=a b.py" in called
  assert ("scontrol requeue 77" in called) == (status in (1, Interrupted.status))
  assert not list(tmp_path.glob(".mmesid*"))


def run_local(count: int, script: str, **variables) -> subprocess.CompletedProcess:
  command = [LAUNCH / "local.sh", str(count), "bash", "-c", script]
  environment = os.environ | variables
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_local_gives_every_process_its_number():
  found = run_local(3, 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"')
  lines = sorted(found.stdout.splitlines())
  assert found.returncode == 0
  assert [line.split(" at ")[0] for line in lines] == ["0 of 3", "1 of 3", "2 of 3"]
  assert len({line.split(" at ")[1] for line in lines}) == 1


def test_local_ends_the_others_and_says_which_was_lost():
  found = run_local(3, '[ "$JAX_PROCESS_ID" = 1 ] && kill -KILL $$; exec sleep 100')
  assert found.returncode == 128 + 9
  assert "process 1 of 3 was lost: status 137" in found.stderr


def test_local_starts_again_as_often_as_asked_but_not_after_a_mistake(tmp_path):
  script = f"echo x >> {tmp_path}/tries; exit 1"
  assert run_local(1, script, RESTARTS="2").returncode == 1
  assert len((tmp_path / "tries").read_text().split()) == 3
  assert run_local(1, "exit 2", RESTARTS="2").returncode == 2


def test_local_passes_a_signal_on(tmp_path):
  """All end with the status of an interrupted run, and so does the launcher."""
  script = f"trap 'exit 75' TERM; touch {tmp_path}/$JAX_PROCESS_ID; while :; do sleep 0.1; done"
  launcher = subprocess.Popen([LAUNCH / "local.sh", "2", "bash", "-c", script])
  while len(list(tmp_path.iterdir())) < 2:
    assert launcher.poll() is None
  launcher.terminate()
  assert launcher.wait(30) == Interrupted.status


@pytest.mark.parametrize("index", [0, 1])
def test_processes_other_than_the_main_one_are_quiet(monkeypatch, index):
  monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **options: None)
  monkeypatch.setattr(jax, "process_index", lambda: index)
  monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
  variables = {processes.COORDINATOR: "localhost:1", processes.PROCESSES: "2"}
  try:
    processes.start({**variables, processes.PROCESS: str(index)}, heartbeat_seconds=10)
    assert reporter.progress(total=1, label="train").disable == (index > 0)
  finally:
    reporter.mute(False)
