"""Opens files that grow in place, under a name that is known before, and never through a link."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from mmesid_jax.errors import UserError, report_disk_errors


def open_to_append(path: Path) -> BinaryIO:
  """Opens a file for reading and for writing at its end; makes it where there is none.

  A symbolic link could lead the writes into any file of the user, so it is not followed. Raises
  UserError for a link and for anything else that is not a regular file.
  """
  with report_disk_errors(path):
    return open(path, "a+b", opener=_open_regular_file)


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
