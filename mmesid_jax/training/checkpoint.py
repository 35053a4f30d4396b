"""Orbax checkpoints of a stage: what resumes it (state and data iterator), and its best
parameters."""

import pathlib

import grain
import jax
import orbax.checkpoint as ocp

from mmesid_jax.errors import UserError


class Checkpoints:
  """`folder/steps` holds the newest states with the Grain iterator, `folder/best` the best
  parameters."""

  def __init__(self, folder: pathlib.Path, *, keep: int = 2):
    self.folder = folder.absolute()
    self._steps = ocp.CheckpointManager(
      self.folder / "steps", options=ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    self._best = ocp.CheckpointManager(
      self.folder / "best", options=ocp.CheckpointManagerOptions(max_to_keep=1)
    )

  @property
  def latest(self) -> int | None:
    return self._steps.latest_step()

  def save(self, step: int, state, iterator: grain.DatasetIterator) -> None:
    """Writes in the background. Call after the step `step` was trained and before the next batch is
    taken."""
    if step in self._steps.all_steps():
      return
    self._steps.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)
      ),
    )

  def restore(self, state, iterator: grain.DatasetIterator):
    """The newest state, shaped as `state`; the iterator is moved to where it was. Raises
    UserError."""
    step = self.latest
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
      data=grain.checkpoint.CheckpointRestore(iterator),
    )
    return self._read(self._steps, step, args)["state"]

  def save_best(self, step: int, params) -> None:
    """Replaces the best parameters."""
    if step in self._best.all_steps():  # a resumed run comes by the same step again
      return
    args = ocp.args.Composite(params=ocp.args.StandardSave(params))
    self._best.save(step, args=args)

  def restore_best(self, params):
    """The best parameters, shaped as `params`. Raises UserError."""
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, params))
    )
    return self._read(self._best, self._best.latest_step(), args)["params"]

  def wait(self) -> None:
    """Until everything is on disk; raises what went wrong in the background."""
    for manager in (self._steps, self._best):
      manager.wait_until_finished()
      manager.check_for_errors()

  def close(self) -> None:
    self._steps.close()
    self._best.close()

  def _read(self, manager: ocp.CheckpointManager, step: int | None, args):
    try:
      return manager.restore(step, args=args)
    except Exception as error:  # Orbax raises many kinds for a damaged file
      where = manager.directory / str(step)
      reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error)
      raise UserError(
        f"{where}: not a readable checkpoint of this model ({reason}); "
        f"delete {self.folder} to train this stage again from its start"
      ) from error
