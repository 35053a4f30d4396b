"""How a command ends when it does not succeed: one line and an exit status."""

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
  """SIGINT or SIGTERM, after everything was saved; the same command goes on. Status 75 (try
  again)."""

  status = 75


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


def disk_fault(error: BaseException | None) -> str | None:
  """What the disk refused, as "no space left on device"; None for an error of another kind.

  Libraries tell it as their own errors, so the system's words are looked for too, in this error and
  in those that it came from.
  """
  while error is not None:
    for code in _DISK:
      if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
        return os.strerror(code).lower()
    error = error.__cause__ or error.__context__
  return None


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Raises UserError, which names `path`, for what the disk refuses in the block."""
  try:
    yield
  except Exception as error:
    if not isinstance(error, Stop) and (reason := disk_fault(error)):
      raise UserError(f"{path}: {reason}") from error
    raise
