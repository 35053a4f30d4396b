"""Encodes images with the vision tower of CLIP or SigLIP, or with a plain vision encoder."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.features.hf_encoder import HFEncoder
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.readers import check_regular_file
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors, import_extra

# The formats that browsers show; others, such as EPS, make Pillow start other programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
MAX_ASPECT_RATIO = 100  # long side / short side: an encoder enlarges the short one


class BrokenImage(Exception):
  """An image cannot be read; the message says why."""


def read_image(path: Path):
  """Returns the image in RGB and upright, as its EXIF data say.

  Raises BrokenImage for a file that is missing, cut short or not an image, for more pixels than
  PIL.Image.MAX_IMAGE_PIXELS, and for a shape that is almost a line.
  """
  image_module, operations = import_extra("PIL.Image"), import_extra("PIL.ImageOps")
  try:
    check_regular_file(path)
    with image_module.open(path, formats=FORMATS) as image:
      width, height = image.size
      if width * height > image_module.MAX_IMAGE_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels")
      if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BrokenImage(f"{width} x {height} pixels, a line")
      return operations.exif_transpose(image).convert("RGB")
  except BrokenImage:
    raise
  except Exception as error:  # decoders raise many types for damaged files
    reason = str(error).replace(repr(str(path)), "").strip() or type(error).__name__
    raise BrokenImage(" ".join(reason.split())[:120]) from error


class ImageEncoder:
  """Encodes image files in their order, while threads decode the next batch.

  Attributes as in TextEncoder; the unit of `work` is one image.
  """

  def __init__(
    self, directory: Path, files: Sequence[Path], *, pooling: str | None = None, batch: int
  ):
    """Loads the model. Raises UserError as HFEncoder does."""
    # Pillow only warns up to twice MAX_IMAGE_PIXELS; read_image refuses those images
    warnings.filterwarnings("ignore", category=import_extra("PIL.Image").DecompressionBombWarning)
    self._model = HFEncoder(
      directory, features="get_image_features", pooling=pooling, default="pooler"
    )
    with explain_load_errors(directory, "image processor"):
      import transformers

      self._processor = transformers.AutoImageProcessor.from_pretrained(
        self._model.modules.transformer, backend="pil", **LOCAL_ONLY
      )
      blank = import_extra("PIL.Image").new("RGB", (64, 64))
      self.width = self._model(self._process(blank)).shape[1]
    self._files, self.batch = files, batch
    self.order = np.arange(len(files))
    self.work, self.unit = np.ones(len(files), int), "images"
    stats = [(file.name, *_size_and_time(file)) for file in files]
    self.device = self._model.device.type
    self.made_from: dict[str, Any] = {
      "pooling": self._model.pooling,
      "batch": batch,
      "images": json_sha256(stats),
    }

  def batches(self, start: int) -> Iterator[np.ndarray]:
    """Yields float32 [B, V] from file `start` on, which is a multiple of the batch size.

    A broken image has a row of NaN.
    """
    starts = range(start, len(self._files), self.batch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      following = self._submit(pool, start)
      for at in starts:
        current, following = following, self._submit(pool, at + self.batch)
        yield self._encode([future.result() for future in current])

  def _submit(self, pool: ThreadPoolExecutor, at: int) -> list[Future]:
    return [pool.submit(self._inputs, file) for file in self._files[at : at + self.batch]]

  def _inputs(self, file: Path) -> dict[str, np.ndarray] | None:
    """Returns the model's inputs for an image file; None if it is broken."""
    try:
      return self._process(read_image(file))
    except BrokenImage:
      return None

  def _process(self, image) -> dict[str, np.ndarray]:
    return dict(self._processor(images=image, return_tensors="np"))

  def _encode(self, inputs: Sequence[dict[str, np.ndarray] | None]) -> np.ndarray:
    x_BV = np.full((len(inputs), self.width), np.nan, np.float32)
    readable = [i for i, x in enumerate(inputs) if x is not None]
    if readable:
      names = inputs[readable[0]]
      x_BV[readable] = self._model(
        {name: np.concatenate([inputs[i][name] for i in readable]) for name in names}
      )
    return x_BV


def _size_and_time(file: Path) -> tuple[int, int]:
  """Returns bytes and modification time in ns; (0, 0) for a missing file, a broken image."""
  try:
    status = file.stat()
  except OSError:
    return 0, 0
  return status.st_size, status.st_mtime_ns
