"""Says which trained models were still getting better when their training ended.

More epochs would probably make such a model better, so a table that compares it is unfair to it.
"""

from collections.abc import Iterator, Sequence

from mmesid_jax.data.dataset import evaluated_users
from mmesid_jax.files import artifact
from mmesid_jax.stages.registry import MODELS
from mmesid_jax.stages.workdir import Workdir

LAST = 2  # epochs; a learning rate that falls to 0 makes the very last one flat for all models
RISE = 0.02  # share of the metric; a model that has learned what it can moves by less


def still_rises(value_of_epoch: Sequence[float], users: int) -> bool:
  """Whether the last value is the best, and the LAST epochs added more than RISE of it and more
  than its standard error.

  A metric of a user is from 0 to 1, so the standard error of a mean m over users is at most
  sqrt(m (1 - m) / users). False for a single value, which shows no direction.
  """
  if len(value_of_epoch) < 2 or value_of_epoch[-1] <= max(value_of_epoch[:-1]):
    return False
  last = value_of_epoch[-1]
  return last - best_before(value_of_epoch) > max(RISE * last, (last * (1 - last) / users) ** 0.5)


def best_before(value_of_epoch: Sequence[float]) -> float:
  """The best value before the LAST epochs; with so few epochs that there is none, the first one."""
  return max(value_of_epoch[:-LAST] or value_of_epoch[:1])


def describe_unfinished(workdir: Workdir) -> Iterator[str]:
  """A line for each model of the table that still rose at its last epoch, with what to do.

  Artifacts hold the values of all epochs, so it makes no difference whether a run trained the
  model, resumed it, or took it from an earlier run. Those of earlier versions do not.
  """
  users = len(evaluated_users(workdir.dataset, "valid"))
  for name, stage in MODELS.items():
    if not workdir.artifact(name).exists():
      continue
    header = artifact.read_header(workdir.artifact(name), name)
    values = header.get("valid_by_epoch", ())
    if still_rises(values, users):
      (metric, *_) = header.get("valid") or ["metric"]
      epochs = len(values)
      yield (
        f"{name}: valid {metric} of {stage.model_name} still rises: {values[-1]:.4f} in epoch "
        f"{epochs} of {epochs}, the best, {best_before(values):.4f} {LAST} epochs "
        "before; the table is unfair to it until it trains longer: "
        f"--config.{name}.epochs={2 * epochs} --overwrite"
      )
