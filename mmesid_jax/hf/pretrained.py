"""Loads parts of a local Hugging Face checkpoint with transformers, and never the code in it."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mmesid_jax.errors import UserError

# For every `from_pretrained`: nothing is downloaded, and no code next to the weights runs.
# Without the second, transformers would ask on the terminal if it may.
LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}


def import_extra(name: str, *, extra: str = "encode", use: str = "encoding") -> ModuleType:
  """Imports a library of an extra of this package. Raises UserError if it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    if error.name != name.split(".")[0]:
      raise UserError(f"{name} is installed, but cannot be imported: {error}") from None
    raise UserError(
      f'{name} is not installed, and {use} needs it: pip install "mmesid_jax[{extra}]"'
    ) from None


@contextlib.contextmanager
def explain_load_errors(directory: Path, part: str) -> Iterator[None]:
  """Raises UserError for any error of transformers while it loads or uses a `part` of the
  directory."""
  from transformers.utils import logging  # heavy

  logging.set_verbosity_error()
  logging.disable_progress_bar()
  try:
    yield
  except (UserError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # many types; those of the library in Rust are no Exceptions
    if "trust_remote_code" in str(error):
      raise UserError(
        f"{directory}: its {part} needs code of its own, which is not run here; use a checkpoint "
        "of an architecture that transformers has (vectors of such a model can be made by its own "
        "code and read with mmesid_jax.vectors)"
      ) from error
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    raise UserError(f"{directory}: its {part} does not load ({reason})") from error
