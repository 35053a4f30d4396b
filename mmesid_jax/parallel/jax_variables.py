"""The environment variables that jax reads: one that is refused, and those that jax cannot take.

Nothing here imports jax: it is asked only where it is imported already.
"""

import os
import re
import sys

from mmesid_jax.errors import UserError

X64, DEVICES = "JAX_ENABLE_X64", ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
FALSE = ("n", "no", "f", "false", "off", "0")  # as jax reads it


def check_precision() -> None:
  """Raises UserError where jax would compute in 64 bits: artifacts could not be read again."""
  value = os.environ.get(X64, "0")
  if value.lower() not in FALSE:
    raise UserError(f"{X64}={value}: numbers here have 32 bits at most; unset this variable")


def variable_fault(error: BaseException) -> str | None:
  """Names the variables that made jax's import raise `error`, or its devices fail to start.

  None for other errors. Devices start at their first use, and jax takes its own frames out of the
  traceback, so whether they start is asked here; not of several processes, as that waits for all.
  """
  given = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
  jax = sys.modules.get("jax")
  if jax is None:
    text = str(error)
    named = [n for n, v in given.items() if n in text.upper() or repr(v) in text]
  elif named := [] if jax.distributed.is_initialized() else [n for n in DEVICES if n in given]:
    try:
      jax.devices()
      return None
    except Exception as failed:
      text = re.sub(r"\.? *\(set JAX_.*\)", "", str(failed)) or "no such device is found here"
  if not named:
    return None
  return f"{', '.join(f'{n}={given[n]}' for n in named)}: {text}; correct or unset it"
