"""Several processes of one run: how they start together, who writes, where they wait.

All do the same, each on its own devices, and see one and the same workdir. Process 0 alone prints
and writes plain files.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmesid_jax.errors import Stop, UserError

T = TypeVar("T")

# What launchers set; `coordinator` is jax's own name.
COORDINATOR, PROCESSES, PROCESS = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
START_SECONDS = 300  # for all processes to come
BARRIER_SECONDS = 1800  # for what one does while the others wait


def start(environment: Mapping[str, str], *, heartbeat_seconds: int) -> None:
  """Joins the other processes, where the environment says that there are any.

  It does by JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID; by
  JAX_NUM_PROCESSES=auto, where jax finds the others by itself, as on a TPU slice; or as a step of
  several Slurm tasks, each of which takes one GPU. A process that is gone is noticed after
  heartbeat_seconds, and then all end. Raises UserError for numbers that make no sense.
  """
  options = {
    "initialization_timeout": START_SECONDS,
    "heartbeat_timeout_seconds": heartbeat_seconds,
  }
  if environment.get(PROCESSES) == "auto":
    jax.distributed.initialize(**options)
  elif COORDINATOR in environment:
    count, index = (_number(environment, name) for name in (PROCESSES, PROCESS))
    if not 0 <= index < count:
      raise UserError(f"{PROCESS}={index}: expected 0 to {count - 1}, as {PROCESSES}={count}")
    jax.distributed.initialize(environment[COORDINATOR], count, index, **options)
  elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    jax.distributed.initialize(cluster_detection_method="slurm", **options)
  else:
    return
  if not first():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process runs


def _number(environment: Mapping[str, str], name: str) -> int:
  value = environment.get(name, "")
  if not value.isdecimal():
    raise UserError(f"{name}={value!r}: expected a number, as {COORDINATOR} is set")
  return int(value)


def leave(status: int) -> None:
  """Ends this process at once where there are others, who are told by the runtime: a regular exit
  would wait for them, and they may be waiting for this one. Alone, does nothing."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def several() -> bool:
  """Whether there are other processes."""
  return jax.process_count() > 1


def first_says(answer: int) -> int:
  """The first process's answer, in all of them."""
  return int(multihost_utils.broadcast_one_to_all(np.int64(answer))) if several() else answer


def agree(what: str, digest: bytes) -> None:
  """Raises Stop, in all processes, unless the digest is the same in all: what every process makes
  for itself may differ on other hardware, and nothing else would notice."""
  if several():
    found = multihost_utils.process_allgather(np.frombuffer(digest[:8], np.uint32))
    if different := np.flatnonzero((found != found[0]).any(1)).tolist():
      raise Stop(
        f"{what}: processes {different} hold other values than process 0; take hosts of one kind, "
        "or train the stages before this one with a single process"
      )


def first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def together(what: str, *, seconds: int = BARRIER_SECONDS) -> None:
  """Waits until all processes are here. Raises Stop, which says who is missing, after so long."""
  if not several():
    return
  try:
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * seconds)
  except Exception as error:  # of the runtime, whatever it is
    named = re.search(r"timed out task names:\s*([\d\s]+)", str(error))
    missing = (
      f"process {', '.join(named[1].split())} did not" if named else f"not all did ({error})"
    )
    raise Stop(f"{what}: waited {seconds} s for all processes to come here; {missing}") from error


def first_then_all(what: str, work: Callable[[], T]) -> T:
  """What `work` gives, which process 0 does before the others do it too: they find what it wrote.

  What it raises is raised by all, each finding it for itself.
  """
  if not several():
    return work()
  if first():
    try:
      return work()
    finally:
      together(what)
  together(what)
  return work()
