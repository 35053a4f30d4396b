"""Several processes of one run: how they start together, which one writes, where they wait.

All run the same program, each on its own devices, and share one workdir. Process 0, the main
process, alone prints and writes plain files.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmesid_jax.display import reporter
from mmesid_jax.errors import Stop, UserError

T = TypeVar("T")
P = ParamSpec("P")

# Environment variables that launchers set; the coordinator's name is jax's own.
COORDINATOR, PROCESSES, PROCESS = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
START_SECONDS = 300  # until all processes have started
BARRIER_SECONDS = 1800  # for work that one process does while the others wait


def start(environment: Mapping[str, str], *, heartbeat_seconds: int) -> None:
  """Joins the other processes if the environment names any, and mutes all but the main one.

  Three environments do: JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID;
  JAX_NUM_PROCESSES=auto, where jax finds the others, as on a TPU slice; a Slurm step of several
  tasks, each of which takes one GPU.

  Args:
    environment: os.environ.
    heartbeat_seconds: all processes end when one has been silent for this time.

  Raises UserError for numbers that make no sense.
  """
  options = {
    "initialization_timeout": START_SECONDS,
    "heartbeat_timeout_seconds": heartbeat_seconds,
  }
  if environment.get(PROCESSES) == "auto":
    try:
      jax.distributed.initialize(**options)
    except ValueError as error:
      raise UserError(f"{PROCESSES}=auto: jax finds no others here ({error}); unset it") from error
  elif COORDINATOR in environment:
    count, index = (_number(environment, name) for name in (PROCESSES, PROCESS))
    if not 0 <= index < count:
      raise UserError(f"{PROCESS}={index}: expected 0 to {count - 1}, as {PROCESSES}={count}")
    jax.distributed.initialize(environment[COORDINATOR], count, index, **options)
  elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    jax.distributed.initialize(cluster_detection_method="slurm", **options)
  else:
    return
  if not is_main():
    reporter.mute()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends


def _number(environment: Mapping[str, str], name: str) -> int:
  value = environment.get(name, "")
  if not value.isdecimal():
    raise UserError(f"{name}={value!r}: expected a number, as {COORDINATOR} is set")
  return int(value)


def exit_at_once(status: int) -> None:
  """Ends this process immediately if there are others; the runtime then ends those too.

  A regular exit would wait for the others, which may be waiting for this one. Does nothing in a
  run of a single process.
  """
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_multiprocess() -> bool:
  """Whether there are other processes."""
  return jax.process_count() > 1


def is_main() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def main_only(function: Callable[P, None]) -> Callable[P, None]:
  """Decorates a function that writes files: other processes than the main one skip it."""

  @functools.wraps(function)
  def call_in_main(*args: P.args, **kwargs: P.kwargs) -> None:
    if is_main():
      function(*args, **kwargs)

  return call_in_main


def broadcast(value: int) -> int:
  """The main process's value, in all processes."""
  if not is_multiprocess():
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def check_equal(label: str, digest: bytes) -> None:
  """Raises Stop, in all processes, unless the digest is the same in all of them.

  For values that every process computes for itself: they may differ on different hardware, and
  nothing else would notice.
  """
  if is_multiprocess():
    digests = multihost_utils.process_allgather(np.frombuffer(digest[:8], np.uint32))
    if different := np.flatnonzero((digests != digests[0]).any(1)).tolist():
      raise Stop(
        f"{label}: processes {different} hold other values than process 0; take hosts of one kind, "
        "or train the stages before this one with a single process"
      )


def barrier(label: str, *, seconds: int = BARRIER_SECONDS) -> None:
  """Waits until all processes are here. Raises Stop, which names the missing ones, at the limit."""
  if not is_multiprocess():
    return
  try:
    ocp.multihost.get_barrier_sync_fn()(key=label, timeout_ms=1000 * seconds)
  except Exception as error:  # the runtime raises many kinds
    named = re.search(r"timed out task names:\s*([\d\s]+)", str(error))
    missing = (
      f"process {', '.join(named[1].split())} did not" if named else f"not all did ({error})"
    )
    raise Stop(f"{label}: waited {seconds} s for all processes to come here; {missing}") from error


def main_first(label: str, work: Callable[[], T]) -> T:
  """The result of `work`, which the main process does before the others do it too.

  The others find the files that the main process wrote. If it raises there, each of the others
  does the work itself, and so raises the same.
  """
  if not is_multiprocess():
    return work()
  if is_main():
    try:
      return work()
    finally:
      barrier(label)
  barrier(label)
  return work()
