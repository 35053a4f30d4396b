"""The remaining time that a person reads."""

import pytest

from mmesid_jax.training import step_progress
from mmesid_jax.training.step_progress import StepProgress


@pytest.fixture
def clock(monkeypatch):
  """A clock whose seconds the test sets."""
  now = [0.0]
  monkeypatch.setattr(step_progress.time, "monotonic", lambda: now[0])
  return now


def progress() -> StepProgress:
  return StepProgress("line", steps=100, steps_per_epoch=20, validate_every=30)


def test_the_time_left_is_unknown_until_a_step_is_timed():
  assert progress().seconds_left(None) is None


def test_the_time_left_counts_steps_and_validations(clock):
  """Validations at 30, 60, 90 and 100: after step 40 there are three."""
  bar = progress()
  bar.advance(40)
  assert bar.seconds_left(0.5) == 60 * 0.5  # no validation was timed yet
  with bar.validation():
    clock[0] += 7
  assert bar.seconds_left(0.5) == 60 * 0.5 + 3 * 7
  bar.advance(60)
  assert bar.seconds_left(0.5) == 0


def test_a_bar_shows_epoch_time_left_and_text(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  bar = progress()
  bar.show("too early", 1.0)  # nothing is drawn before the first step is compiled
  bar.start(0)
  bar.advance(40)
  bar.show("loss 3.5", 2.0)
  bar.close()
  shown = capsys.readouterr().err
  assert "too early" not in shown
  assert "line:  40%" in shown and "40/100" in shown
  assert "epoch 3 of 5, 2 min 0 s left, loss 3.5" in shown
