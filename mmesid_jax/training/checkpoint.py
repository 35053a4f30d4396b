"""Orbax checkpoints of a stage: state and data iterator, to resume it, and its best parameters.

Every process reads the same batches, so they share the state of the iterator, and a run can
continue with another number of processes or on another mesh.
"""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import grain
import jax
import orbax.checkpoint as ocp

from mmesid_jax.display import reporter
from mmesid_jax.errors import Stop, UserError, disk_fault
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.files.readers import parse_json, read_bytes
from mmesid_jax.parallel import processes

DIGESTS = "sha256.json"  # in every checkpoint: file -> digest


class UnreadableCheckpoint(Exception):
  """A checkpoint cannot be restored; the message has its path and the reason."""


class Checkpoints:
  """`folder/steps` holds the newest states with the Grain iterator, `folder/best` the best
  parameters of each of them.

  A state is {"train": with "params", "best": with "step", the step that its best parameters are
  from, or 0}. It gets its name after these parameters have theirs, so that a run that is killed at
  any moment finds both.

  As a context it waits for the last writes and closes. If the disk refuses anything that is written
  in the folder, it raises a UserError that names the last good checkpoint.
  """

  def __init__(self, folder: pathlib.Path, *, keep: int = 2):
    self.folder = folder.absolute()
    self._steps = _manager(self.folder / "steps", ocp.checkpoint_managers.LatestN(keep))
    self._on_disk = set(self._steps.all_steps())  # also those that are to be deleted
    self._best = _manager(self.folder / "best", _NewestOfEach(lambda: self._on_disk))

  @property
  def latest(self) -> int | None:
    return self._steps.latest_step()

  def save(self, step: int, state, iterator: grain.DatasetIterator) -> None:
    """Writes in the background, once the best parameters are on disk. Call it after the step
    `step` and before the next batch is taken."""
    if step in self._steps.all_steps():
      return
    self._best.wait_until_finished()  # raises what went wrong
    self._on_disk = {*self._steps.all_steps(), step}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(iterator.get_state())
    )
    self._save(self._steps, step, args)

  def restore(self, state, iterator: grain.DatasetIterator):
    """The newest state that can be read, shaped as `state`; sets the iterator to its position.

    Newer ones that cannot be read are moved to folder/damaged, with a warning. Raises UserError
    where none can be read, and then moves none.
    """
    args = ocp.args.Composite(state=_restore_like(state), data=ocp.args.JsonRestore())
    damaged: dict[int, UnreadableCheckpoint] = {}
    for step in sorted(self._steps.all_steps(), reverse=True):
      try:
        found = _restore_step(self._steps, step, args)
        self._bring_best_in_line(step, found["state"])
      except UnreadableCheckpoint as error:
        damaged[step] = error
        if error.__cause__ is not None and processes.is_multiprocess():
          break  # Orbax failed here, and others may have read it
        continue
      self._move_aside(damaged, self._steps.directory / str(step))
      iterator.set_state(found["data"])
      return found["state"]
    newest = damaged[max(damaged)]
    raise UserError(f"{newest}; delete {self.folder} to train this stage again from its start")

  def save_best(self, step: int, params) -> None:
    """Writes the best parameters so far, in the background."""
    self._forget_best(step)
    self._save(self._best, step, ocp.args.Composite(params=ocp.args.StandardSave(params)))

  def restore_best(self, step: int, params):
    """The best parameters, those of `step`, shaped as `params`. Raises UserError."""
    args = ocp.args.Composite(params=_restore_like(params))
    try:
      return _restore_step(self._best, step, args)["params"]
    except UnreadableCheckpoint as error:
      raise UserError(
        f"{error}; the best parameters of this stage are lost, and only of this one: delete "
        f"{self.folder} and run the same command to train it again from its start"
      ) from error

  def wait(self) -> None:
    """Waits until everything is on disk. Raises what went wrong in the background."""
    for manager in (self._steps, self._best):
      manager.wait_until_finished()
      manager.check_for_errors()

  def close(self) -> None:
    """Waits for pending writes, and so, with several processes, for the others."""
    try:
      self._steps.close()
    finally:
      self._best.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error: BaseException | None, traceback) -> None:
    late = None
    try:
      # What one process alone has met must not make it wait for the others, who wait for it.
      if error is None or isinstance(error, Stop) or not processes.is_multiprocess():
        self.close()
    except Exception as found:  # Orbax raises many kinds for what failed in the background
      late = found
    fault = error or late
    if isinstance(fault, Exception) and not isinstance(fault, Stop):
      if not self.folder.is_dir():
        raise UserError(f"{self.folder}: no such directory any more") from fault
      if reason := disk_fault(fault):
        raise UserError(f"{self.folder}: {reason}; {self.last_good()}") from fault
    if error is None and late is not None:
      raise late

  def last_good(self) -> str:
    """The newest checkpoint on disk, for a message."""
    if self.latest is None:
      return f"no checkpoint was saved yet in {self.folder}"
    return f"the last good checkpoint is step {self.latest} in {self.folder}"

  def _save(self, manager: ocp.CheckpointManager, step: int, args) -> None:
    if not manager.directory.is_dir():  # Orbax would make it again, and save beside nothing
      raise UserError(f"{manager.directory}: no such directory any more; step {step} is not saved")
    manager.save(step, args=args)

  def _bring_best_in_line(self, step: int, state) -> None:
    """Makes the best parameters those that the state of `step` means.

    Raises UnreadableCheckpoint where they cannot be read and the state does not hold them.
    """
    best_step = int(state["best"]["step"])
    path = self._best.directory / str(best_step)
    reason = _damage(path) if best_step else None
    if reason is not None and best_step != step:
      raise UnreadableCheckpoint(
        f"{self._steps.directory / str(step)}: not a readable checkpoint of this model "
        f"(its best parameters, {path}: {reason})"
      )
    self._forget_best(step + 1)
    if reason is not None:
      self.save_best(step, state["train"]["params"])

  def _forget_best(self, start: int) -> None:
    """Deletes best parameters of the step `start` and later: of a run that did not come to save
    its state, and repeats these steps."""
    for step in self._best.all_steps():
      if step >= start:
        self._best.delete(step)

  def _move_aside(self, damaged: dict[int, Exception], used: pathlib.Path) -> None:
    """Moves damaged checkpoints out of the way of the next save at the same step."""
    processes.barrier("read the checkpoints")
    for step, error in damaged.items() if processes.is_main() else ():
      aside = self.folder / "damaged" / str(step)
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      os.replace(self._steps.directory / str(step), aside)
      reporter.warn(f"{error}; continuing from {used}; what is left of the other is in {aside}")
    processes.barrier("move what is damaged aside")
    if damaged:
      self._steps.reload()


def _restore_like(tree) -> ocp.args.StandardRestore:
  """Restores arrays with the shapes and shardings of the tree. Not strict: on another mesh, tables
  of items are padded with another number of zero rows."""
  shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
  return ocp.args.StandardRestore(shapes, strict=False)


class _Manager(ocp.CheckpointManager):
  """A manager that never stops a run: the loop decides that."""

  def reached_preemption(self, step: int) -> bool:
    # Orbax would ask the runtime with the number of the step, but StopRequest counts its own calls:
    # the second one would overwrite the first, and a signal could be lost.
    return False


class _NewestOfEach(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the newest of the best parameters, and for each of the states those that were the newest
  at its step."""

  def __init__(self, states: Callable[[], set[int]]):
    self._states = states

  def should_preserve(self, checkpoints, *, context):
    steps = [checkpoint.step for checkpoint in checkpoints]
    limits = {*self._states(), *steps[-1:]}
    needed = {max((step for step in steps if step <= limit), default=None) for limit in limits}
    return [step in needed for step in steps]


def _manager(
  directory: pathlib.Path, kept: ocp.checkpoint_managers.PreservationPolicy
) -> ocp.CheckpointManager:
  write_digests = functools.partial(_write_digests, directory)
  options = ocp.AsyncOptions(post_finalization_callback=write_digests)
  try:
    return _Manager(
      directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        cleanup_tmp_directories=True,  # what a killed run, or a full disk, left half written
        async_options=options,
        # Both managers write at the same time, and one must not take the barriers of the other.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=directory.name
        ),
      ),
    )
  except (ValueError, TypeError, KeyError, AttributeError) as error:  # of Orbax's descriptions
    raise UserError(
      f"{directory}: holds a damaged checkpoint ({_first_line(error)}); delete {directory.parent} "
      "to train this stage again from its start"
    ) from error


def _restore_step(manager: ocp.CheckpointManager, step: int | None, args):
  """Restores a step with Orbax. Raises UnreadableCheckpoint, from what Orbax raised if the digests
  were right."""
  path = manager.directory / str(step)
  cause, reason = None, _damage(path)
  if reason is None:
    try:
      return manager.restore(step, args=args)
    except Exception as error:  # Orbax raises many kinds for a damaged file
      cause, reason = error, _first_line(error)
  raise UnreadableCheckpoint(
    f"{path}: not a readable checkpoint of this model ({reason})"
  ) from cause


def _damage(checkpoint: pathlib.Path) -> str | None:
  """Why a checkpoint must not be read, None if it may; the first process reads the files for
  all."""
  reason = None
  if processes.is_main():
    try:
      there = checkpoint.is_dir()
      reason = find_changed_file(checkpoint) if there else "no such folder"
    except Exception as error:  # of a damaged list of digests, or a file that cannot be read
      reason = _first_line(error)
  refused = processes.broadcast(reason is not None)
  return (reason or "process 0 says why") if refused else None


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else str(type(error))


def _write_digests(directory: pathlib.Path) -> None:
  """Writes the digests of its files into the one checkpoint that is about to get its name.

  Orbax notices changed bytes in the description of the arrays, but not in the arrays. Raises what
  the disk raised: the UserError would name this temporary folder, and nothing of the run.
  """
  (checkpoint,) = directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*")
  digests = {name: file_sha256(checkpoint / name) for name in _files_of_items(checkpoint)}
  try:
    write_text(checkpoint / DIGESTS, json.dumps(digests, indent=1) + "\n")
  except UserError as error:
    raise error.__cause__ or error from None


def _files_of_items(checkpoint: pathlib.Path) -> list[str]:
  """The names of all files but those beside the items: Orbax writes one of them again, and
  restoring reads none."""
  checkpoint = pathlib.Path(checkpoint)  # not Orbax's kind of path, which has no such pattern
  files = sorted(file for file in checkpoint.glob("*/**/*") if file.is_file())
  return [str(file.relative_to(checkpoint)) for file in files]


def find_changed_file(checkpoint: pathlib.Path) -> str | None:
  """The first file that is not as it was written, in words; None if there is none."""
  if not (checkpoint / DIGESTS).is_file():
    return f"{DIGESTS} is missing"
  digests = parse_json(read_bytes(checkpoint / DIGESTS))
  for name, digest in digests.items():
    if not (checkpoint / name).is_file():
      return f"{name} is missing"
    if file_sha256(checkpoint / name) != digest:
      return f"{name} is not as it was written"
  for name in _files_of_items(checkpoint):
    if name not in digests:
      return f"{name} is not in {DIGESTS}"
  return None
