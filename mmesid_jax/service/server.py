"""Serves a workdir over HTTP until SIGINT or SIGTERM."""

import gc
import pathlib
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.service.app import create_app
from mmesid_jax.service.limits import TimedProtocol
from mmesid_jax.service.prometheus import Metrics
from mmesid_jax.service.service import Limits, Service
from mmesid_jax.serving.recommender import Recommender

# Between turns of Python's threads. The model's thread does little in Python, and waits for a turn
# many times a batch while requests are read; with the default, 5 ms, it waits too long.
SWITCH_SECONDS = 2e-4
STOP_SECONDS = 30  # for requests that were accepted, after a signal
CONNECTIONS = 1024  # above it, requests are refused
BACKLOG = 1024


def serve(
  path: pathlib.Path,
  load: Callable[[], Recommender],
  limits: Limits,
  host: str,
  port: int,
  token: str | None,
  *,
  local_only: bool,
  images: pathlib.Path | None = None,
) -> None:
  """Loads and warms the model, then answers requests. Returns after a signal, when all requests
  that were accepted are answered. load: reads the workdir `path`. token and local_only are those of
  `Limited`, images is that of `Service`. Raises UserError."""
  listener = _listen(host, port)
  metrics = Metrics()
  reporter.info(f"{path}: the model is loaded and compiled ...")
  service = Service(path, load, limits, metrics.add_batch, images)
  if images is not None:
    reporter.info(f"{images}: images of {len(service.images):,} items")
  metrics.watch("mmesid_waiting", "Histories that wait", lambda: service.batcher.waiting)
  metrics.watch("mmesid_items", "Items that can be recommended", lambda: service.live.num_items)
  metrics.watch("mmesid_reloads", "Newer artifacts that were read", lambda: service.reloads)
  metrics.watch("mmesid_failed_reloads", "Those that were not", lambda: service.failed_reloads)
  config = uvicorn.Config(
    create_app(service, metrics, token, local_only=local_only),
    http=TimedProtocol,
    ws="none",
    log_level="warning",
    access_log=False,
    server_header=False,
    limit_concurrency=CONNECTIONS,
    timeout_graceful_shutdown=STOP_SECONDS,
  )
  server = uvicorn.Server(config)
  sys.setswitchinterval(SWITCH_SECONDS)
  gc.collect()
  gc.freeze()  # what is there now stays; to look through it again and again stops all requests
  for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn sends itself the signal again at the end
    signal.signal(number, lambda *_: setattr(server, "should_exit", True))
  try:
    listener.listen(BACKLOG)
  except OSError as error:  # another process listens by now
    raise _cannot_listen(host, port, error) from None
  address, bound = listener.getsockname()[:2]
  shown = f"[{address}]" if ":" in address else address
  reporter.info(f"ready: http://{shown}:{bound}/ (requests: http://{shown}:{bound}/docs)")
  server.run(sockets=[listener])
  reporter.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
  """A socket that does not listen yet. Raises UserError where the port is in use, for example."""
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
  except OSError as error:
    raise _cannot_listen(host, port, error) from None
  return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
  return UserError(f"--host={host} --port={port}: {error.strerror or error}")
