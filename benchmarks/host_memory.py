"""What a process takes of the host's memory while it does something."""

import contextlib
import ctypes
import gc
import pathlib
import threading


@contextlib.contextmanager
def host_peak():
  """Most anonymous memory of the process above where it was: pages of mapped files do not
  count."""

  def anonymous() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])

  gc.collect()
  with contextlib.suppress(AttributeError):  # of glibc: gives back what is free
    ctypes.CDLL(None).malloc_trim(0)
  before, stop, taken = anonymous(), threading.Event(), {"bytes": 0}

  def watch():
    while not stop.wait(0.005):
      taken["bytes"] = max(taken["bytes"], anonymous() - before)

  thread = threading.Thread(target=watch)
  thread.start()
  try:
    yield taken
  finally:
    stop.set()
    thread.join()
