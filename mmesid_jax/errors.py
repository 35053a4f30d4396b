"""How a command ends when it does not succeed: one line and an exit status."""


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
