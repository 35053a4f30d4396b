"""Batches of queries that wait: their order, bounds and ends."""

import threading

import pytest

from mmesid_jax.service.batcher import Batcher, QueueFull, TooLate


class Held:
  """Answers a query by itself, once `go` is set; notes the batches."""

  def __init__(self):
    self.go, self.began, self.batches = threading.Event(), threading.Event(), []

  def __call__(self, kind, queries):
    self.began.set()
    assert self.go.wait(20)
    self.batches.append((kind, list(queries)))
    if "bad" in queries:
      raise RuntimeError("bad")
    return list(queries)


def held_batcher(most=3, capacity=10):
  """A batcher whose first batch, ["first"], is held until `go`."""
  answer = Held()
  batcher = Batcher(answer, most, capacity)
  (first,) = batcher.submit([("a", "first")], 30)
  assert answer.began.wait(20)
  return batcher, answer, first


def test_what_gathers_while_a_batch_is_computed_is_the_next_batch():
  batcher, answer, first = held_batcher()
  waiting = batcher.submit([("a", 1), ("b", 2), ("b", 3)], 30)
  waiting += batcher.submit([("a", 4), ("a", 5)], 30)
  assert batcher.waiting == 5
  answer.go.set()
  assert [future.result(20) for future in waiting] == [1, 2, 3, 4, 5] and first.result(20)
  batcher.close()
  assert answer.batches == [("a", ["first"]), ("a", [1, 4, 5]), ("b", [2, 3])]


def test_more_than_the_queue_holds_is_refused_as_a_whole():
  batcher, answer, _ = held_batcher(capacity=3)
  waiting = batcher.submit([("a", 1), ("a", 2)], 30)
  with pytest.raises(QueueFull):
    batcher.submit([("a", 3), ("a", 4)], 30)
  waiting += batcher.submit([("a", 5)], 30)
  answer.go.set()
  assert [future.result(20) for future in waiting] == [1, 2, 5]
  batcher.close()
  assert answer.batches[1:] == [("a", [1, 2, 5])]


def test_a_query_that_waited_too_long_is_not_computed():
  batcher, answer, _ = held_batcher()
  (late,), (other,) = batcher.submit([("a", 1)], -1), batcher.submit([("a", 2)], 30)
  answer.go.set()
  with pytest.raises(TooLate):
    late.result(20)
  assert other.result(20) == 2
  batcher.close()
  assert answer.batches[1:] == [("a", [2])]


def test_an_error_is_that_of_its_batch_alone():
  batcher, answer, _ = held_batcher()
  (bad,) = batcher.submit([("a", "bad")], 30)
  answer.go.set()
  with pytest.raises(RuntimeError, match="bad"):
    bad.result(20)
  (next_one,) = batcher.submit([("a", 7)], 30)
  assert next_one.result(20) == 7
  batcher.close()


def test_closing_answers_all_that_waits_and_takes_no_more():
  batcher, answer, _ = held_batcher()
  waiting = batcher.submit([("a", n) for n in range(9)], 30)
  closing = threading.Thread(target=batcher.close)
  closing.start()
  answer.go.set()
  closing.join(20)
  assert [future.result(0) for future in waiting] == list(range(9))
  with pytest.raises(QueueFull):
    batcher.submit([("a", 1)], 30)


def test_a_query_that_nobody_waits_for_any_more_harms_nothing():
  batcher, answer, _ = held_batcher()
  gone, other = batcher.submit([("a", 1), ("a", 2)], 30)
  assert gone.cancel()
  answer.go.set()
  assert other.result(20) == 2
  batcher.close()


def test_a_call_runs_between_batches_and_its_error_is_its_own():
  begun, go, order = threading.Event(), threading.Event(), []

  def answer(kind, queries):
    begun.set()
    go.wait(10)
    order.append(list(queries))
    return queries

  def fail():
    raise OSError("full")

  batcher = Batcher(answer, 8, 100)
  first = batcher.submit([("a", 1)], 10)
  begun.wait(10)
  second = batcher.submit([("a", 2)], 10)
  calls = [batcher.call(lambda: order.append("call")), batcher.call(fail)]
  go.set()
  assert calls[0].result(10) is None and second[0].result(10) == 2 and first[0].result(10) == 1
  with pytest.raises(OSError, match="full"):
    calls[1].result(10)
  assert order == [[1], "call", [2]]
  last = batcher.call(lambda: order.append("last"))
  batcher.close()
  assert last.result(10) is None and order[-1] == "last"
  with pytest.raises(QueueFull):
    batcher.call(fail)
