"""Serves recommendations over HTTP, with a page to look at.

Examples:
  python -m mmesid_jax.serve --workdir=runs/quickstart --port=8000
  python -m mmesid_jax.serve --workdir=runs/shop --host=0.0.0.0 --max_top_k=20

Then ask: curl --json '{"users": [1], "top_k": 5}' http://127.0.0.1:8000/recommend

The page is http://127.0.0.1:8000/, the interface http://127.0.0.1:8000/docs. With --images it shows
the files that fetch_images wrote, or KEY.jpg (.png, ...). Needs the extra
`serve`: pip install ".[serve]".

The environment variable MMESID_TOKEN holds a token that requests must send ("Authorization: Bearer
TOKEN"). Without it the service only listens on the loopback interface, unless --no_token says that
anybody who reaches --host may ask.

Events that the service is told are kept in DIR/served_events.jsonl. Added items are kept until it
ends. Newer artifacts in the workdir are served as soon as they are compiled.
"""

import functools
import os
import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.config.schema import SERVED
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 = all.")
PORT = flags.DEFINE_integer("port", 8000, "Port; 0 = any free one.", 0, 65535)
NO_TOKEN = flags.DEFINE_bool("no_token", False, "Listen on other addresses without a token.")
MODEL = flags.DEFINE_enum(
  "model",
  None,
  SERVED,
  "The model that is served; if not given, the blend if any.",
)
TOP_K = flags.DEFINE_integer("max_top_k", 100, "Most items that can be asked for.", 1, 10_000)
QUEUE = flags.DEFINE_integer("queue", 1024, "Histories that may wait; more are refused.", 1, 10**6)
SECONDS = flags.DEFINE_float(
  "seconds", 10.0, "Longest time for a body, and for a wait.", 0.01, 3600.0
)
BODY = flags.DEFINE_integer("max_body", 2**20, "Bytes of the largest request.", 1024, 2**30)
HISTORY = flags.DEFINE_integer("max_history", 1024, "Items of the longest history.", 1, 10**6)
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, if it has moved.")
IMAGES = paths.define_path("images", None, "Folder with images of items, for the page.")
KEY = flags.DEFINE_string("key", None, "Field of items.jsonl that holds the keys, if not `key`.")
GROUPS = {
  "Required": "workdir=DIR",
  "Where": "host=ADDRESS port no_token",
  "What": "model max_top_k data_dir=DIR key=FIELD images=DIR",
  "Limits": "queue seconds max_body max_history",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "MMESID_TOKEN"


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("workdir")
  token = os.environ.get(TOKEN) or None
  if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
    raise UserError(f"{TOKEN}: expected printable ASCII characters, no space at its ends")
  if HOST.value not in LOOPBACK and token is None and not NO_TOKEN.value:
    raise UserError(
      f"--host={HOST.value}: others can reach it, and no token is set; set {TOKEN}, or say "
      "--no_token"
    )
  try:
    from mmesid_jax.service.server import serve
  except ModuleNotFoundError as error:
    raise UserError(f'{error.name} is missing; pip install ".[serve]"') from None
  from mmesid_jax.service.service import Limits
  from mmesid_jax.serving.recommender import Recommender

  path = pathlib.Path(WORKDIR.value)
  load = functools.partial(
    Recommender.load, path, model=MODEL.value, data_dir=DATA_DIR.value, key=KEY.value
  )
  limits = Limits(QUEUE.value, SECONDS.value, BODY.value, HISTORY.value, TOP_K.value)
  local_only = token is None and HOST.value in LOOPBACK
  images = None if IMAGES.value is None else pathlib.Path(IMAGES.value)
  serve(path, load, limits, HOST.value, PORT.value, token, local_only=local_only, images=images)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
