"""Collects waiting queries into batches, which one thread computes one after the other."""

import collections
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple


class QueueFull(Exception):
  """There is no room for more queries."""


class TooLate(Exception):
  """A query waited longer than its deadline."""


class _Waiting(NamedTuple):
  kind: Hashable
  query: Any
  future: Future
  deadline: float  # of time.monotonic


class Batcher:
  """Answers queries in batches of at most `most`, without waiting for a batch to fill up.

  While a batch is computed, others gather; so batches grow with the load. Queries of different
  kinds are in different batches, the kind of the oldest first.

  Args:
    answer: computes the answers of queries of one kind; called in one thread only.
    most: queries in a batch.
    capacity: queries that may wait.
    watch: gets the size and the seconds of every batch.
  """

  def __init__(
    self,
    answer: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
    most: int,
    capacity: int,
    watch: Callable[[int, float], None] = lambda size, seconds: None,
  ):
    self._answer, self._most, self._capacity, self._watch = answer, most, capacity, watch
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._calls: collections.deque[tuple[Callable[[], None], Future]] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
    self._thread.start()

  @property
  def is_alive(self) -> bool:
    """Whether queries are taken and answered."""
    return self._thread.is_alive() and not self._closed

  @property
  def waiting(self) -> int:
    """Number of queries that wait."""
    return len(self._waiting)

  def submit(self, queries: Sequence[tuple[Hashable, Any]], seconds: float) -> list[Future]:
    """The futures of the answers to (kind, query); all queries wait, or none.

    A future raises TooLate where its query waited longer than `seconds`. Raises QueueFull.
    """
    deadline = time.monotonic() + seconds
    entries = [_Waiting(kind, query, Future(), deadline) for kind, query in queries]
    with self._changed:
      if self._closed or len(self._waiting) + len(entries) > self._capacity:
        raise QueueFull
      self._waiting += entries
      self._changed.notify()
    return [entry.future for entry in entries]

  def call(self, function: Callable[[], None]) -> Future:
    """Runs a function in the thread of the batches, before the next one. Raises QueueFull once the
    batcher is closed."""
    future: Future = Future()
    with self._changed:
      if self._closed:
        raise QueueFull
      self._calls.append((function, future))
      self._changed.notify()
    return future

  def close(self) -> None:
    """Answers all that waits, and ends the thread."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _run(self) -> None:
    try:
      while self._wait():
        while self._calls:
          _run_call(*self._calls.popleft())
        if batch := self._next_batch():
          self._answer_batch(batch)
    finally:  # after an error that no batch explains, nobody waits for ever
      with self._changed:
        self._closed = True
        for entry in self._waiting:
          _finish(entry.future, error=TooLate())
        self._waiting.clear()
        for _, future in self._calls:
          _finish(future, error=TooLate())

  def _answer_batch(self, batch: list[_Waiting]) -> None:
    started = time.monotonic()
    for entry in batch:
      if entry.deadline < started:
        _finish(entry.future, error=TooLate())
    if not (batch := [entry for entry in batch if entry.deadline >= started]):
      return
    try:
      answers = self._answer(batch[0].kind, [entry.query for entry in batch])
      for entry, answer in zip(batch, answers, strict=True):
        _finish(entry.future, answer)
      self._watch(len(batch), time.monotonic() - started)
    except Exception as error:  # the next batch may do
      for entry in batch:
        _finish(entry.future, error=error)

  def _wait(self) -> bool:
    """Waits for queries and calls; whether there are any, as at the end there are none."""
    with self._changed:
      while not (self._waiting or self._calls or self._closed):
        self._changed.wait()
      return bool(self._waiting or self._calls)

  def _next_batch(self) -> list[_Waiting]:
    with self._changed:
      batch, others = [], []
      while self._waiting and len(batch) < self._most:
        entry = self._waiting.popleft()
        (batch if not batch or entry.kind == batch[0].kind else others).append(entry)
      self._waiting.extendleft(reversed(others))
      return batch


def _run_call(function: Callable[[], None], future: Future) -> None:
  try:
    function()
    _finish(future)
  except Exception as error:
    _finish(future, error=error)


def _finish(future: Future, answer: Any = None, error: BaseException | None = None) -> None:
  if future.done() or not future.set_running_or_notify_cancel():  # nobody waits for it any more
    return
  if error is None:
    future.set_result(answer)
  else:
    future.set_exception(error)
