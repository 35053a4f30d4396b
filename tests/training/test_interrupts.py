"""When it is time to save, by a clock that the test moves."""

from mmesid_jax.training.interrupts import SaveSchedule


def test_by_steps_or_by_minutes_whichever_comes_first():
  now = [1000.0]
  times = SaveSchedule(10, 2.0, clock=lambda: now[0])
  assert not times.due(9) and times.due(10) and not times.due(11)
  now[0] += 119.9
  assert not times.due(11)
  now[0] += 0.1
  assert times.due(11)
  times.saved()
  assert not times.due(12) and times.due(20)
  now[0] += 120
  assert times.due(21)


def test_no_minutes_are_never_over():
  now = [0.0]
  times = SaveSchedule(10, 0.0, clock=lambda: now[0])
  now[0] += 1e9
  assert not times.due(9) and times.due(20)


def test_steps_left_end_where_it_is_time_by_steps():
  times = SaveSchedule(10, 0.0)
  for step in range(30):
    assert times.due(step + times.steps_left(step))
    assert not any(times.due(n) for n in range(step + 1, step + times.steps_left(step)))
