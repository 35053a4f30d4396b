"""Downloads the first image of every item, for the command encode.

Examples:
  python -m mmesid_jax.fetch_images --data=DIR --output=DIR/images
  python -m mmesid_jax.fetch_images --data=DIR --output=DIR/images --per_second=2 --retries=5

The URL is the first under `images` of DIR/items.jsonl, http or https. Each image becomes KEY.jpg
(.png, ...), by its content and not by its name, and a line of manifest.jsonl: {"key": ..., "url":
..., "file": ..., "status": "ok"}, or "failed" with a reason. The same command continues a run that
was stopped, and tries failed images again.

Urls may come from somebody else, so only public addresses are asked, also after a redirect, unless
--allow_private is given. A proxy is taken from the environment (http_proxy, https_proxy), and looks
up names itself; one at a private address needs --allow_private.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths

DATA = paths.define_path("data", None, "Folder with items.jsonl.")
OUTPUT = paths.define_path("output", None, "Folder for the images.")
KEY = flags.DEFINE_string("key", "key", "Field of items.jsonl that names the images.")
PER_SECOND = flags.DEFINE_float(
  "per_second", 5, "Most requests per second.", lower_bound=0.001, upper_bound=10_000
)
RETRIES = flags.DEFINE_integer(
  "retries", 3, "Retries of a request that may succeed later.", lower_bound=0, upper_bound=100
)
TIMEOUT = flags.DEFINE_float(
  "timeout",
  20,
  "Seconds that a request may take in all, up to the last byte.",
  lower_bound=0.1,
  upper_bound=3600,
)
MAX_MEGABYTES = flags.DEFINE_float(
  "max_megabytes", 20, "Largest size of an image.", lower_bound=0.001, upper_bound=1000
)
ALLOW_PRIVATE = flags.DEFINE_bool(
  "allow_private", False, "Also ask servers at loopback, link-local and private addresses."
)
flags.mark_flags_as_required(["data", "output"])
GROUPS = {
  "Required": "data=DIR output=DIR",
  "Optional": "key=FIELD per_second retries timeout=SECONDS max_megabytes allow_private",
}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.features.image_fetcher import fetch_images

  fetch_images(
    pathlib.Path(DATA.value),
    pathlib.Path(OUTPUT.value),
    key=KEY.value,
    per_second=PER_SECOND.value,
    retries=RETRIES.value,
    timeout=TIMEOUT.value,
    max_megabytes=MAX_MEGABYTES.value,
    allow_private=ALLOW_PRIVATE.value,
  )


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
