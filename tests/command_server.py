"""Runs commands in forks of a process that has the large packages imported: seconds less for each.

Nothing of mmesid_jax is imported before a fork, so a command begins as `python -m mmesid_jax.NAME`
does. A line on stdin is a request, {"program", "arguments", "out", "err", "env"}; the answer, a
line on stdout, is the status of the command's process.
"""

import json
import os
import runpy
import sys
import warnings


def import_packages() -> None:
  """Imports the packages. None of them uses a device, or starts a thread that a fork would lack."""
  import flax.nnx  # noqa: F401
  import grain  # noqa: F401
  import jax  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import scipy.stats  # noqa: F401


def serve() -> dict:
  """Forks for every request; returns the request in the fork, and never in the server."""
  for line in sys.stdin:
    request = json.loads(line)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
      process = os.fork()  # Python 3.12 warns that numpy has threads; they are made for forks
    if not process:
      return request
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
  os._exit(0)


def redirect(request: dict) -> None:
  for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
    file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, stream.fileno())
    os.close(file)
  nothing = os.open(os.devnull, os.O_RDONLY)
  os.dup2(nothing, sys.stdin.fileno())
  os.close(nothing)


if __name__ == "__main__":
  import_packages()
  request = serve()
  redirect(request)
  os.environ.clear()
  os.environ.update(request["env"])
  sys.path[0] = os.getcwd()
  sys.argv = ["-m", *request["arguments"]]  # as while Python looks for the module
  runpy.run_module(f"mmesid_jax.{request['program']}", run_name="__main__", alter_sys=True)
