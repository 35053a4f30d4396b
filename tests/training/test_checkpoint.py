"""Checkpoints that were damaged after they were written: noticed, and not lost more than needed."""

import json
import pathlib
import shutil

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.training.checkpoint import DIGESTS, Checkpoints

RANDOM = np.random.default_rng(0).normal(size=(9, 5000)).astype(np.float32)  # in files of its own


def state(step: int):
  return {"weight": jnp.asarray(RANDOM[step]), "step": np.asarray(step)}


def batches() -> grain.DatasetIterator:
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def saved(folder: pathlib.Path, *steps: int, keep: int = 2) -> pathlib.Path:
  """Checkpoints of these steps: at step n, n batches were taken."""
  checkpoints, iterator = Checkpoints(folder, keep=keep), batches()
  for step in range(1, max(steps) + 1):
    next(iterator)
    if step in steps:
      checkpoints.save(step, state(step), iterator)
      checkpoints.save_best(step, state(step))
  checkpoints.wait()
  checkpoints.close()
  return folder


def restored(folder: pathlib.Path) -> tuple[int, int]:
  """The step that is read, and the next number of its iterator."""
  checkpoints, iterator = Checkpoints(folder), batches()
  found = checkpoints.restore(state(0), iterator)
  checkpoints.close()
  np.testing.assert_array_equal(found["weight"], RANDOM[int(found["step"])])
  return int(found["step"]), next(iterator)


def arrays(checkpoint: pathlib.Path) -> pathlib.Path:
  """The file that holds the weights."""
  return max(checkpoint.rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)


def flip(checkpoint: pathlib.Path) -> None:
  file = arrays(checkpoint)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def truncate(checkpoint: pathlib.Path) -> None:
  arrays(checkpoint).write_bytes(arrays(checkpoint).read_bytes()[:-100])


def delete(checkpoint: pathlib.Path) -> None:
  arrays(checkpoint).unlink()


def forget(checkpoint: pathlib.Path) -> None:
  """Metadata, in a checkpoint that has no sums either, as those of an earlier version."""
  (checkpoint / DIGESTS).unlink()
  (checkpoint / "state" / "_METADATA").unlink()


def move_in_the_data(checkpoint: pathlib.Path) -> None:
  """Whole files, of another step."""
  shutil.copytree(checkpoint.parent / "3" / "data", checkpoint / "data", dirs_exist_ok=True)


def empty(checkpoint: pathlib.Path) -> None:
  shutil.rmtree(checkpoint)
  checkpoint.mkdir()


def blot(checkpoint: pathlib.Path) -> None:
  (checkpoint / DIGESTS).write_bytes(b"\xff{")


DAMAGES = (flip, truncate, delete, forget, move_in_the_data, empty, blot)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_moved_aside_for_the_one_before(tmp_path, damage, capsys):
  steps = saved(tmp_path, 3, 5) / "steps"
  damage(steps / "5")
  assert restored(tmp_path) == (3, 3)
  warning = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
  (line,) = warning
  assert f"{steps}/5: not a readable checkpoint" in line and f"continuing from {steps}/3" in line
  assert (tmp_path / "damaged" / "5").is_dir() and f"{tmp_path}/damaged/5" in line
  assert saved(tmp_path, 5) and restored(tmp_path) == (5, 5)


def test_whole_checkpoints_stay_and_the_newest_is_read(tmp_path, capsys):
  saved(tmp_path, 3, 5)
  assert restored(tmp_path) == (5, 5)
  assert "warning" not in capsys.readouterr().err
  assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["3", "5"]
  assert not (tmp_path / "damaged").exists()


def test_where_none_can_be_read_all_stay_where_they_are(tmp_path):
  saved(tmp_path, 3, 5)
  for step in (3, 5):
    flip(tmp_path / "steps" / str(step))
  with pytest.raises(UserError) as caught:
    restored(tmp_path)
  message = str(caught.value)
  assert f"{tmp_path}/steps/5: not a readable checkpoint" in message
  assert "is not as it was written" in message and f"delete {tmp_path} to train" in message
  assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["3", "5"]


def test_a_checkpoint_twice_damaged_at_one_step(tmp_path):
  for _ in range(2):
    saved(tmp_path, 3, 5)
    flip(tmp_path / "steps" / "5")
    assert restored(tmp_path) == (3, 3)


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
  for part in ("steps", "best"):
    (saved(tmp_path, 3) / part / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  assert restored(saved(tmp_path, 5)) == (5, 5)
  assert sorted(file.name for file in (tmp_path / "steps").iterdir()) == ["3", "5"]
  assert [file.name for file in (tmp_path / "best").iterdir()] == ["5"]


def test_sums_name_every_file_that_is_read(tmp_path):
  checkpoint = saved(tmp_path, 3) / "steps" / "3"
  named = json.loads((checkpoint / DIGESTS).read_text()).keys()
  items = [file for item in ("state", "data") for file in (checkpoint / item).rglob("*")]
  assert named == {str(file.relative_to(checkpoint)) for file in items if file.is_file()}


def test_damaged_best_parameters_say_what_is_lost(tmp_path):
  flip(saved(tmp_path, 3) / "best" / "3")
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(UserError) as caught:
    checkpoints.restore_best(state(0))
  assert f"{tmp_path}/best/3: not a readable checkpoint" in str(caught.value)
  assert "only of this one" in str(caught.value) and f"delete {tmp_path} and" in str(caught.value)
  checkpoints.save_best(3, state(3))  # a resumed run comes by here again
  checkpoints.wait()
  np.testing.assert_array_equal(checkpoints.restore_best(state(0))["weight"], RANDOM[3])
  checkpoints.close()


def test_the_best_of_a_run_that_went_back_is_written_though_a_later_one_was_there(tmp_path):
  saved(tmp_path, 5)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save_best(3, state(3))
  checkpoints.wait()
  np.testing.assert_array_equal(checkpoints.restore_best(state(0))["weight"], RANDOM[3])
  checkpoints.close()
