"""Exceptions that end a command with one line and an exit status, and errors of the disk."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator


class Stop(Exception):
  """Ends the command with its message as one line on stderr and `status`, without a traceback."""

  status = 1


class UserError(Stop):
  """A user's mistake: which file, line or field, what was expected, what to do. Status 2."""

  status = 2


class Diverged(Stop):
  """A loss that is not finite: the step, its batch, the last good checkpoint. Status 3."""

  status = 3


class Interrupted(Stop):
  """SIGINT or SIGTERM, after saving; the same command continues. Status 75 (try again)."""

  status = 75


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
# What is wrong with a place that the user named, rather than with the program.
_PLACE = (
  *(*_DISK, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
  *(errno.ENOTEMPTY, errno.EXDEV, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.ETXTBSY),
  *(errno.EINVAL, errno.ENOTSUP, errno.ENXIO, errno.ENODEV),
)


def place_fault(error: BaseException) -> str | None:
  """The system's reason why a place that the error names cannot be used; None for other errors."""
  is_place = isinstance(error, OSError) and error.errno in _PLACE and error.filename
  return (error.strerror or str(error)).lower() if is_place else None


def disk_fault(error: BaseException | None) -> str | None:
  """The disk's reason for an error, as "no space left on device"; None for other errors.

  Libraries wrap it in errors of their own, so the system's words are looked for too, in this error
  and in its causes.
  """
  while error is not None:
    for code in _DISK:
      if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
        return os.strerror(code).lower()
    error = error.__cause__ or error.__context__
  return None


@contextlib.contextmanager
def report_disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what the disk refuses in the block into a UserError that names `path`."""
  try:
    yield
  except Exception as error:
    if not isinstance(error, Stop) and (reason := disk_fault(error)):
      raise UserError(f"{path}: {reason}") from error
    raise
