"""Figures of a running service, in the format of Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import (
  CONTENT_TYPE_LATEST,
  CollectorRegistry,
  Counter,
  Gauge,
  Histogram,
  generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
  """Counters of one service."""

  def __init__(self):
    self.registry = CollectorRegistry()

    def histogram(name: str, text: str, buckets: tuple, labels: tuple = ()) -> Histogram:
      return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    self._requests = Counter(
      "mmesid_requests", "Requests by path and status", ("path", "status"), registry=self.registry
    )
    self._seconds = histogram(
      "mmesid_request_seconds", "From a request's headers to its answer", SECONDS, ("path",)
    )
    self._batch_seconds = histogram("mmesid_batch_seconds", "The model, by batch", SECONDS)
    self._batch_size = histogram(
      "mmesid_batch_size", "Histories in a batch", (1, 2, 4, 8, 16, 32, 64)
    )

  def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
    """Adds a gauge that is read when it is asked for."""
    Gauge(name, text, registry=self.registry).set_function(value)

  def add_batch(self, size: int, seconds: float) -> None:
    """Counts a batch of the model."""
    self._batch_size.observe(size)
    self._batch_seconds.observe(seconds)

  def text(self) -> bytes:
    """All figures."""
    return generate_latest(self.registry)


class Measured:
  """An ASGI app whose requests are counted.

  paths: those that are named in the figures; all others are one, "other".
  """

  def __init__(self, app: Callable, metrics: Metrics, paths: frozenset[str]):
    self._app, self._metrics, self._paths = app, metrics, paths

  async def __call__(self, scope, receive, send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    path = scope["path"] if scope["path"] in self._paths else "other"
    started, status = time.perf_counter(), "none"

    async def send_and_note(message):
      nonlocal status
      if message["type"] == "http.response.start":
        status = str(message["status"])
      await send(message)

    try:
      await self._app(scope, receive, send_and_note)
    finally:
      self._metrics._requests.labels(path, status).inc()
      self._metrics._seconds.labels(path).observe(time.perf_counter() - started)
