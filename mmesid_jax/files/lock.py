"""Locks: one run at a time works in a folder, or writes a file."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import IO

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError, report_disk_errors
from mmesid_jax.files.append import append_bytes, open_to_append
from mmesid_jax.parallel import processes

# With several processes: a file server may keep the lock of a lost host for a while.
PATIENCE_SECONDS = 150

LOCK = "lock"  # the file's name
LOCK_TEXT = b"process "  # how its content begins

# What file systems without locks answer: Lustre or NFS, mounted without.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def lock_folder(
  folder: pathlib.Path, *, doing: str = "training", flag: str = "--workdir"
) -> Iterator[None]:
  """Holds the file folder/lock, which says who holds it, while the block runs.

  The system releases the lock when the process ends, however it ends; a file that is left over
  stops nobody. Of several processes the main one holds it.

  Args:
    folder: made where there is none.
    doing: what a run does in the folder, for messages.
    flag: the flag that names the folder, for messages.

  Raises UserError where another run holds it. Warns where the file system has no locks.
  """
  if not processes.is_main():
    yield
    return
  path = folder / LOCK
  with report_disk_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  with open_to_append(path) as file:  # "w" would empty what another run wrote
    patience = PATIENCE_SECONDS if processes.is_multiprocess() else 0
    if not try_lock(file, path, f"no other run is {doing} here", seconds=patience):
      file.seek(0)
      holder = file.read().decode(errors="replace").strip() or "another run"
      raise UserError(
        f"{folder}: {holder} is {doing} here; wait until it is done, stop it (it saves first), "
        f"or choose another {flag}"
      )
    file.seek(0)
    if not LOCK_TEXT.startswith(content := file.read(len(LOCK_TEXT))):
      raise UserError(f"{path}: holds {content[:20]!r}, so no run wrote it; move it away")
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.truncate(0)
    holder = f"{os.getpid()} on {socket.gethostname()}, since {since},\n"
    with report_disk_errors(path):
      append_bytes(file, LOCK_TEXT + holder.encode())
    yield


def try_lock(file: IO, path: pathlib.Path, condition: str, *, seconds: float = 0) -> bool:
  """Locks an open file; returns False where another process still holds it after `seconds`.

  Where the file system has no locks, warns to make sure that `condition` holds, and returns True.
  """
  end = time.monotonic() + seconds
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      if time.monotonic() >= end:
        return False
      time.sleep(1)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      reporter.warn(f"{path}: {error.strerror}; make sure that {condition}")
      return True
