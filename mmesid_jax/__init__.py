"""MME-SID on JAX: multimodal semantic IDs and a Llama that recommends with them.

Source: "Empowering Large Language Model for Sequential Recommendation via Multimodal Embeddings and
Semantic IDs", arXiv 2509.02017 (CIKM 2025).
"""

import os
import signal
import sys

__version__ = "0.1.0"


def begin_command() -> None:
  """Prepares a command before anything else is imported.

  `python -m` looks for modules in the folder that the user stands in first. It may be a stranger's
  data set, and a tqdm.py there would run; so it is left out, unless it holds this package. A signal
  while modules are imported would end in a traceback; mmesid_jax.config.process_end takes the
  signals over later.
  """
  has_package = sys.path[0] == os.path.dirname(__path__[0])
  if sys.argv[0] == "-m" and not sys.flags.safe_path and not has_package:
    del sys.path[0]

  def end(number, frame) -> None:
    name = signal.Signals(number).name
    os.write(2, f"stopped: {name}; nothing was begun: run the same command again\n".encode())
    os._exit(75)

  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, end)


# Python puts "-m" there until it has found the module. Scripts begin in __main__.
if sys.argv[:1] == ["-m"]:
  begin_command()
