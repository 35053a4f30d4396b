"""Renders a checkpoint's chat template, a program of its author, in a process with limits.

Run as a script it is that process: a request in JSON from stdin, the texts in JSON to stdout.
"""

import contextlib
import json
import pathlib
import resource
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10  # of the processor, for all texts
MEMORY = 1 << 30  # bytes, in addition to what the libraries take
STARTS_WITHIN = 120  # seconds, on a busy machine


def render_chats(
  template: str, chats: Sequence[Sequence[dict[str, str]]], special_tokens: dict[str, str]
) -> list[str | None]:
  """The chats as the template writes them, up to where the answer begins.

  Args:
    template: in Jinja's language, which transformers runs in Jinja's sandbox.
    chats: of each its messages, with "role" and "content".
    special_tokens: name -> text, for example "bos_token".

  Returns a text for each chat. None where the template raises an error; None for all where it takes
  more than SECONDS or MEMORY.
  """
  request = {"template": template, "chats": list(chats), "special_tokens": special_tokens}
  try:
    done = subprocess.run(
      [sys.executable, "-P", __file__],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      timeout=STARTS_WITHIN,
    )
    return json.loads(done.stdout) if done.returncode == 0 else [None] * len(chats)
  except subprocess.TimeoutExpired:
    return [None] * len(chats)


def _answer(request: dict) -> list[str | None]:
  from transformers.utils import chat_template_utils

  used = resource.getrusage(resource.RUSAGE_SELF)
  seconds = int(used.ru_utime + used.ru_stime) + SECONDS
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
  with contextlib.suppress(OSError):  # Linux alone says, and limits, what is mapped
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
  texts: list[str | None] = []
  for chat in request["chats"]:
    try:
      rendered, _ = chat_template_utils.render_jinja_template(
        [chat],
        chat_template=request["template"],
        add_generation_prompt=True,
        **request["special_tokens"],
      )
      texts += rendered
    except Exception:  # a template raises what it likes
      texts.append(None)
  return texts


if __name__ == "__main__":
  json.dump(_answer(json.loads(sys.stdin.read())), sys.stdout)
