"""Downloads the first image of every item, for mmesid_jax.encode: python -m mmesid_jax.fetch
--data=DIR --output=DIR/images [--per_second=5] [--retries=3] [--timeout=20]

The url is the first under `images` of DIR/items.jsonl, http or https. Each image becomes KEY.jpg
(.png, ...), by what it is and not by what it is called, and a line of manifest.jsonl: {"key": ...,
"url": ..., "file": ..., "status": "ok"}, or "failed" with a reason. The same command goes on where
it was stopped, and tries again what failed.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line

DATA = flags.DEFINE_string("data", None, "Folder with items.jsonl.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the images.")
KEY = flags.DEFINE_string("key", "key", "Field of items.jsonl that names the images.")
PER_SECOND = flags.DEFINE_float("per_second", 5, "Requests, at most.", lower_bound=0.001)
RETRIES = flags.DEFINE_integer("retries", 3, "Of a request that may succeed later.", lower_bound=0)
TIMEOUT = flags.DEFINE_float("timeout", 20, "Seconds of silence; of an image.", lower_bound=0.1)
MAX_MEGABYTES = flags.DEFINE_float("max_megabytes", 20, "Of one image.", lower_bound=0.001)
flags.mark_flags_as_required(["data", "output"])


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
  )


if __name__ == "__main__":
  command_line.run_command(main)
