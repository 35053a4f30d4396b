"""The command `encode`: turns the texts or images of all items into a feature table."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, refuse_data_file
from mmesid_jax.data.folder.items import read_item_objects
from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.display import reporter
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.features.hf_encoder import model_sha256
from mmesid_jax.features.image_encoder import BrokenImage, ImageEncoder, read_image
from mmesid_jax.features.image_files import item_image_files
from mmesid_jax.features.item_template import item_texts
from mmesid_jax.features.missing_rows import check_record, is_table_up_to_date, write_filled_table
from mmesid_jax.features.sentence_modules import Normalize
from mmesid_jax.features.text_encoder import TextEncoder
from mmesid_jax.features.tfidf_encoder import TFIDF, TfidfEncoder
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.feature_table import cast_rows
from mmesid_jax.files.resumable import PartialTable, open_partial_table
from mmesid_jax.hf.pretrained import import_extra

MAX_NAMED = 3  # broken images that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeSettings:
  """The settings of one feature table, as the command's flags give them."""

  data: pathlib.Path  # folder with items.jsonl
  modality: str  # its name, for the record and the messages
  model: pathlib.Path | None  # Hugging Face directory; None: TF-IDF, for texts
  output: pathlib.Path  # .npy
  images: pathlib.Path | None = None  # folder of images; None: encode texts
  key: str = "key"  # images: the field of items.jsonl that names them
  template: str = "{title}"  # texts: see item_template
  max_length: int | None = None  # texts: tokens; None: as many as the model can read
  pooling: str | None = None  # of token vectors; None: the encoder's default
  normalize: bool = True  # give every vector length 1
  missing: str = "mean"  # row of an item without text or image: "mean" or "zero"
  dtype: str = "float32"
  batch: int = 64  # items that are encoded at once
  overwrite: bool = False  # replace a table that was made from something else


def encode_items(settings: EncodeSettings) -> None:
  """Writes the feature table; continues an interrupted run. Raises UserError and Interrupted."""
  refuse_data_file(settings.output)
  check_record(settings.output)
  if settings.images is None:
    _encode_texts(settings)
  else:
    _encode_images(settings, settings.images)


def _encode_texts(settings: EncodeSettings) -> None:
  texts = item_texts(read_item_objects(settings.data / ITEMS), settings.template)
  item_ids = [i for i, text in enumerate(texts, start=1) if text is not None]
  if not item_ids:
    raise UserError(f"{settings.data}: no item has text for --template={settings.template}")
  made_from = {"modality": settings.modality, "template": settings.template}
  known_texts = [texts[i - 1] for i in item_ids]
  if settings.model is None:
    _write_features(TfidfEncoder(known_texts), item_ids, len(texts), made_from, settings)
    return
  encoder = TextEncoder(
    settings.model,
    known_texts,
    pooling=settings.pooling,
    max_length=settings.max_length,
    batch=settings.batch,
  )
  made_from |= _model_versions(settings.model)
  _write_features(encoder, item_ids, len(texts), made_from, settings)
  if encoder.num_at_limit:
    reporter.info(
      f"{encoder.num_at_limit:,} texts reach {encoder.max_tokens} tokens; the rest of them is cut"
    )


def _encode_images(settings: EncodeSettings, folder: pathlib.Path) -> None:
  keys = item_keys(settings.data, settings.key)
  files = item_image_files(folder, keys, read_item_objects(settings.data / ITEMS))
  item_ids = [i for i, file in enumerate(files, start=1) if file is not None]
  if not item_ids:
    raise UserError(f"{folder}: holds no item's image; expected KEY.jpg, or a manifest of images")
  encoder = ImageEncoder(
    settings.model,
    [files[i - 1] for i in item_ids],
    pooling=settings.pooling,
    batch=settings.batch,
  )
  made_from = {"modality": settings.modality} | _model_versions(settings.model)
  broken = _write_features(encoder, item_ids, len(files), made_from, settings)
  if broken:
    reasons = _broken_reasons([files[i - 1] for i in broken[:MAX_NAMED]])
    if len(broken) == len(item_ids):
      raise UserError(f"{folder}: all {len(broken):,} images are broken: {reasons}")
    reporter.info(f"{len(broken):,} images are broken: {reasons}")


def _model_versions(model: pathlib.Path) -> dict[str, str]:
  """Returns the digest of the model and the versions of the libraries that run it."""
  versions = {name: import_extra(name).__version__ for name in ("torch", "transformers")}
  return {"model": model_sha256(model), **versions}


def _write_features(
  encoder: TextEncoder | TfidfEncoder | ImageEncoder,
  item_ids: list[int],
  num_items: int,
  made_from: dict[str, Any],
  settings: EncodeSettings,
) -> list[int]:
  """Writes the table and the record of what it was made from; continues an interrupted run.

  `item_ids`: the items of the encoder's texts or images. Returns the items whose images are broken.
  If all are, no table is written.
  """
  output, dtype = settings.output, settings.dtype
  made_from |= encoder.made_from | {
    "normalize": settings.normalize,
    "missing": settings.missing,
    "dtype": dtype,
    "items": json_sha256([num_items, item_ids]),
    "device": encoder.device,
  }
  overwrite = settings.overwrite
  partial = output.with_name(f"{output.name}.partial")
  # asked also where rows of this run wait: the table beside them may be somebody else's
  if is_table_up_to_date(output, made_from, overwrite=overwrite) and not partial.exists():
    reporter.info(f"{output}: up to date")
    return []
  with open_partial_table(partial, made_from, encoder.width, dtype, overwrite=overwrite) as table:
    _encode_remaining(table, encoder, settings, partial)
    rows_EV = table.rows()
    items_E = np.array(item_ids)[encoder.order]
    broken = sorted(items_E[np.isnan(rows_EV[:, 0])].tolist())
    if len(broken) == len(item_ids):
      return broken
    about = {"made_from": made_from, "model": str(settings.model or TFIDF)}
    counts = {"num_items": num_items, "broken": len(broken)}
    num_missing = write_filled_table(
      output, rows_EV, items_E, num_items, settings.missing, about | counts
    )
    partial.unlink()
  filling = {"mean": "the mean of the others", "zero": "zeros"}[settings.missing]
  without = f"; {num_missing:,} without {settings.modality} have {filling}" if num_missing else ""
  reporter.info(f"{output}: {num_items:,} items, {encoder.width} wide, {dtype}{without}")
  return broken


def _encode_remaining(
  table: PartialTable,
  encoder: TextEncoder | TfidfEncoder | ImageEncoder,
  settings: EncodeSettings,
  path: pathlib.Path,
) -> None:
  """Appends the rows that the table lacks.

  Every run encodes the same whole batches, because the other items of a batch can change the last
  bits of a vector.
  """
  total = len(encoder.order)
  done = len(table) if len(table) >= total else len(table) // encoder.batch * encoder.batch
  table.truncate(min(done, total))
  if done:
    reporter.info(f"{path}: {done:,} of {total:,} items are encoded; continuing")
  work_E = encoder.work  # longest texts first, so a count of items would mislead about the time
  with reporter.progress(
    label="encode",
    total=int(work_E.sum()),
    initial=int(work_E[:done].sum()),
    unit=encoder.unit,
    unit_scale=True,
  ) as bar:
    try:
      for x_BV in encoder.batches(done):
        if settings.normalize:
          x_BV = Normalize()(x_BV)
        x_BV, lost_B = cast_rows(x_BV, settings.dtype)
        if np.isinf(x_BV).any() or lost_B.any():
          raise UserError(f"--dtype={settings.dtype}: cannot hold these vectors; take float32")
        table.append(x_BV)
        bar.update(int(work_E[len(table) - len(x_BV) : len(table)].sum()))
    except KeyboardInterrupt as error:  # of SIGINT or SIGTERM
      raise Interrupted(
        f"{str(error) or 'SIGINT'} with {len(table):,} of {total:,} items encoded, kept in {path}; "
        "run the same command again"
      ) from None


def _broken_reasons(files: Iterable[pathlib.Path]) -> str:
  """Returns the names of these images and why each cannot be read."""
  reasons = []
  for file in files:
    try:
      read_image(file)
    except BrokenImage as error:
      reasons.append(f"{file.name} ({error})")
  return ", ".join(reasons)
