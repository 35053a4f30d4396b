"""One run at a time works in a folder."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from mmesid_jax.errors import UserError
from mmesid_jax.parallel import processes

# With several processes: a file server may keep the lock of a host that was lost for a while.
PATIENCE_SECONDS = 150

# Of a file system that knows no locks: Lustre or NFS, mounted without.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def locked(
  folder: pathlib.Path, *, doing: str = "training", flag: str = "--workdir"
) -> Iterator[None]:
  """Holds folder/lock, which says by whom. The system lets go of it when the process ends, however
  it ends: a file that was left behind refuses nobody.

  doing: what a run does in the folder, which the flag names; for messages. Of several processes the
  first one holds it. Raises UserError where another run does. A file system without locks is warned
  of on stderr.
  """
  if not processes.first():
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "lock"
  with path.open("a+") as file:  # "w" would empty what another run wrote
    try:
      _take(file, PATIENCE_SECONDS if processes.several() else 0)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or "another run"
      raise UserError(
        f"{folder}: {holder} is {doing} here; wait until it is done, stop it (it saves first), "
        f"or choose another {flag}"
      ) from error
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      print(
        f"warning: {path}: {error.strerror}; see to it that no other run is {doing} here",
        file=sys.stderr,
      )
    file.truncate(0)
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},\n")
    file.flush()
    yield


def _take(file: TextIO, seconds: float) -> None:
  """Raises BlockingIOError where another holds the lock for so long."""
  end = time.monotonic() + seconds
  while True:
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if time.monotonic() >= end:
        raise
      time.sleep(1)
