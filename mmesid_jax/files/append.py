"""Opens files that grow in place, under a name that is known before, and never through a link."""

import errno
import os
import stat
from pathlib import Path
from typing import IO

from mmesid_jax.errors import UserError, report_disk_errors


def open_to_append(path: Path) -> IO[bytes]:
  """Opens a file for reading and for writing at its end; makes it where there is none.

  Write to it with `append_bytes`. A symbolic link is not followed: it could lead into any other
  file. Raises UserError for a link and for anything else that is not a regular file.
  """
  with report_disk_errors(path):
    # without a buffer, whose bytes a full disk would refuse once more when the file is closed
    return open(path, "a+b", buffering=0, opener=_open_regular_file)


def append_bytes(file: IO[bytes], content: bytes) -> None:
  """Adds bytes at the end of a file of `open_to_append`. Raises OSError."""
  left = memoryview(content)
  while left:
    left = left[file.write(left) :]


def _open_regular_file(path: str, options: int) -> int:
  try:  # not blocking: a pipe would wait for its other end
    descriptor = os.open(path, options | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise UserError(f"{path}: is a symbolic link, which is not followed; remove it") from None
    raise
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise UserError(f"{path}: is not a regular file; move it away")
  return descriptor
