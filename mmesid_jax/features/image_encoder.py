"""Vectors of images, by the vision tower of CLIP or SigLIP or by a plain vision encoder."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.features.hf_encoder import (
  LOCAL_ONLY,
  HFEncoder,
  digest_json,
  explain_load_errors,
  import_extra,
)

# What browsers show; formats beyond, such as EPS, start programs of their own.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
MAX_ASPECT_RATIO = 100  # of the sides: an encoder enlarges the short one


class BrokenImage(Exception):
  """An image that cannot be read, and why."""


def read_image(path: Path):
  """The image, RGB, upright. Raises Broken for a file that is missing, cut short, no image, of more
  pixels than PIL.Image.MAX_IMAGE_PIXELS, or a mere line."""
  image_module, operations = import_extra("PIL.Image"), import_extra("PIL.ImageOps")
  try:
    with image_module.open(path, formats=FORMATS) as image:
      width, height = image.size
      if width * height > image_module.MAX_IMAGE_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels")
      if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BrokenImage(f"{width} x {height} pixels, a line")
      return operations.exif_transpose(image).convert("RGB")
  except BrokenImage:
    raise
  except Exception as error:  # decoders raise many kinds for files that are damaged
    reason = str(error).replace(repr(str(path)), "").strip() or type(error).__name__
    raise BrokenImage(" ".join(reason.split())[:120]) from error


class ImageEncoder:
  """Encodes image files in their order; threads decode the next batch meanwhile."""

  def __init__(
    self, directory: Path, files: Sequence[Path], *, pooling: str | None = None, batch: int
  ):
    """Raises UserError as Pretrained does."""
    # between once and twice MAX_IMAGE_PIXELS PIL only warns; read_image refuses that itself
    warnings.filterwarnings("ignore", category=import_extra("PIL.Image").DecompressionBombWarning)
    self._model = HFEncoder(
      directory, features="get_image_features", pooling=pooling, default="pooler"
    )
    with explain_load_errors(directory, "image processor"):
      import transformers

      self._processor = transformers.AutoImageProcessor.from_pretrained(
        directory, backend="pil", **LOCAL_ONLY
      )
      blank = import_extra("PIL.Image").new("RGB", (64, 64))
      self.width = self._model(self._processed(blank)).shape[1]
    self._files, self.batch = files, batch
    self.order = np.arange(len(files))
    self.work, self.unit = np.ones(len(files), int), "images"
    stats = [(file.name, *_size_and_time(file)) for file in files]
    self.device = self._model.device.type
    self.made_from: dict[str, Any] = {
      "pooling": self._model.pooling,
      "batch": batch,
      "images": digest_json(stats),
    }

  def batches(self, start: int) -> Iterator[np.ndarray]:
    """float32 [B, V] each, from file `start` on, a multiple of the batch; a row of NaN for an image
    that is broken."""
    starts = range(start, len(self._files), self.batch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      coming = self._submitted(pool, start)
      for at in starts:
        now, coming = coming, self._submitted(pool, at + self.batch)
        yield self._encoded([future.result() for future in now])

  def _submitted(self, pool: ThreadPoolExecutor, at: int) -> list[Future]:
    return [pool.submit(self._inputs, file) for file in self._files[at : at + self.batch]]

  def _inputs(self, file: Path) -> dict[str, np.ndarray] | None:
    """What the processor makes of an image file; None where that is broken."""
    try:
      return self._processed(read_image(file))
    except BrokenImage:
      return None

  def _processed(self, image) -> dict[str, np.ndarray]:
    return dict(self._processor(images=image, return_tensors="np"))

  def _encoded(self, inputs: Sequence[dict[str, np.ndarray] | None]) -> np.ndarray:
    x_BV = np.full((len(inputs), self.width), np.nan, np.float32)
    whole = [i for i, x in enumerate(inputs) if x is not None]
    if whole:
      names = inputs[whole[0]]
      x_BV[whole] = self._model({n: np.concatenate([inputs[i][n] for i in whole]) for n in names})
    return x_BV


def _size_and_time(file: Path) -> tuple[int, int]:
  """(0, 0) for a file that is not there: a broken image as others."""
  try:
    found = file.stat()
  except OSError:
    return 0, 0
  return found.st_size, found.st_mtime_ns
