"""Checkpoints that were damaged after they were written: noticed, and not lost more than needed."""

import json
import pathlib
import shutil
import time

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.training import checkpoint
from mmesid_jax.training.checkpoint import DIGESTS, Checkpoints

RANDOM = np.random.default_rng(0).normal(size=(9, 5000)).astype(np.float32)  # in files of its own


def params(step: int):
  return {"weight": jnp.asarray(RANDOM[step])}


def state(step: int, best: int | None = None):
  """The state of a run; its best parameters are from the step `best`, None = from this one."""
  best = {"step": np.asarray(step if best is None else best)}
  return {"train": {"params": params(step), "step": np.asarray(step)}, "best": best}


def batches() -> grain.DatasetIterator:
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def saved(folder: pathlib.Path, *steps: int, keep: int = 2) -> pathlib.Path:
  """Checkpoints of these steps: at step n, n batches were taken."""
  checkpoints, iterator = Checkpoints(folder, keep=keep), batches()
  for step in range(1, max(steps) + 1):
    next(iterator)
    if step in steps:
      checkpoints.save_best(step, params(step))
      checkpoints.save(step, state(step), iterator)
  checkpoints.wait()
  checkpoints.close()
  return folder


def restored(folder: pathlib.Path) -> tuple[int, int]:
  """The step that is read, and the next number of its iterator."""
  checkpoints, iterator = Checkpoints(folder), batches()
  found = checkpoints.restore(state(0), iterator)
  checkpoints.close()
  step = int(found["train"]["step"])
  np.testing.assert_array_equal(found["train"]["params"]["weight"], RANDOM[step])
  return step, next(iterator)


def best_of(folder: pathlib.Path, step: int) -> np.ndarray:
  checkpoints = Checkpoints(folder)
  found = checkpoints.restore_best(step, params(0))
  checkpoints.close()
  return found["weight"]


def arrays(folder: pathlib.Path) -> pathlib.Path:
  """The file that holds the weights."""
  return max(folder.rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)


def flip(folder: pathlib.Path) -> None:
  file = arrays(folder)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def truncate(folder: pathlib.Path) -> None:
  arrays(folder).write_bytes(arrays(folder).read_bytes()[:-100])


def delete(folder: pathlib.Path) -> None:
  arrays(folder).unlink()


def forget(folder: pathlib.Path) -> None:
  """Metadata, in a checkpoint that has no sums either, as those of an earlier version."""
  (folder / DIGESTS).unlink()
  (folder / "state" / "_METADATA").unlink()


def move_in_the_data(folder: pathlib.Path) -> None:
  """Whole files, of another step."""
  shutil.copytree(folder.parent / "3" / "data", folder / "data", dirs_exist_ok=True)


def empty(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def blot(folder: pathlib.Path) -> None:
  (folder / DIGESTS).write_bytes(b"\xff{")


def forget_only_the_digests(folder: pathlib.Path) -> None:
  (folder / DIGESTS).unlink()


def shorten_the_list(folder: pathlib.Path) -> None:
  """Without digests a damaged file would be taken as it is."""
  (folder / DIGESTS).write_text("{}")


DAMAGES = (
  *(flip, truncate, delete, forget, move_in_the_data, empty, blot),
  *(forget_only_the_digests, shorten_the_list),
)


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


def test_a_damaged_description_is_one_line(tmp_path):
  """Orbax reads it as it opens the folder, and raises many kinds."""
  folder = saved(tmp_path / "stage", 1)
  file = folder / "steps" / "1" / "_CHECKPOINT_METADATA"
  for content in ("[]", "3", '{"performance_metrics": []}', '{"metrics": 3}'):
    file.write_text(content)
    with pytest.raises(UserError, match="steps: holds a damaged checkpoint .*stage to train"):
      Checkpoints(folder)


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
  assert sorted(file.name for file in (tmp_path / "best").iterdir()) == ["3", "5"]


def test_sums_name_every_file_that_is_read(tmp_path):
  folder = saved(tmp_path, 3) / "steps" / "3"
  named = json.loads((folder / DIGESTS).read_text()).keys()
  items = [file for item in ("state", "data") for file in (folder / item).rglob("*")]
  assert named == {str(file.relative_to(folder)) for file in items if file.is_file()}


def test_damaged_best_parameters_say_what_is_lost(tmp_path):
  flip(saved(tmp_path, 3) / "best" / "3")
  with pytest.raises(UserError) as caught:
    best_of(tmp_path, 3)
  assert f"{tmp_path}/best/3: not a readable checkpoint" in str(caught.value)
  assert "only of this one" in str(caught.value) and f"delete {tmp_path} and" in str(caught.value)


DAMAGES_OF_BEST = (flip, truncate, delete, blot, shutil.rmtree)


@pytest.mark.parametrize("damage", DAMAGES_OF_BEST)
def test_best_parameters_that_a_state_holds_are_taken_from_it_again(tmp_path, damage):
  damage(saved(tmp_path, 3, 5) / "best" / "5")
  assert restored(tmp_path) == (5, 5)
  np.testing.assert_array_equal(best_of(tmp_path, 5), RANDOM[5])


@pytest.mark.parametrize("damage", DAMAGES_OF_BEST)
def test_a_state_whose_best_parameters_are_lost_is_moved_aside(tmp_path, damage, capsys):
  """Those of the step before are there, but they are not its own."""
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 3):
    checkpoints.save_best(step, params(step))
    checkpoints.save(step + 1, state(step + 1, best=step), batches())
  checkpoints.wait()
  checkpoints.close()
  damage(tmp_path / "best" / "3")
  assert restored(tmp_path) == (2, 0)
  assert f"its best parameters, {tmp_path}/best/3: " in capsys.readouterr().err
  assert [file.name for file in (tmp_path / "best").iterdir()] == ["1"]
  np.testing.assert_array_equal(best_of(tmp_path, 1), RANDOM[1])


def test_best_parameters_stay_as_long_as_a_state_needs_them(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in range(1, 9):
    checkpoints.save_best(step, params(step))
    if step in (2, 5, 7):
      checkpoints.save(step, state(step), batches())
    checkpoints.wait()
    states = sorted(int(file.name) for file in (tmp_path / "steps").iterdir())
    bests = {int(file.name) for file in (tmp_path / "best").iterdir()}
    assert {step, *states} <= bests and len(bests) <= 4
  checkpoints.close()


def test_a_state_gets_its_name_after_its_best_parameters(tmp_path, monkeypatch):
  """Though these are held back until the state has its name, or for a second."""
  write_digests = checkpoint._write_digests

  def hold_back(directory):
    end = time.monotonic() + 1
    while directory.name == "best" and time.monotonic() < end:
      if (tmp_path / "steps" / "3").exists():
        early.append(directory)
      time.sleep(0.01)
    write_digests(directory)

  early: list[pathlib.Path] = []
  monkeypatch.setattr(checkpoint, "_write_digests", hold_back)
  saved(tmp_path, 3)
  assert not early


def test_the_best_of_a_run_that_went_back_is_written_though_a_later_one_was_there(tmp_path):
  saved(tmp_path, 5)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save_best(3, params(3))
  checkpoints.wait()
  checkpoints.close()
  np.testing.assert_array_equal(best_of(tmp_path, 3), RANDOM[3])
