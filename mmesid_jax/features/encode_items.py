"""What the command `encode` does: vectors of the items' texts or images, as a feature table."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from mmesid_jax.data.folder.items import read_objects
from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.features.hf_encoder import digest_directory, digest_json, import_extra
from mmesid_jax.features.image_encoder import BrokenImage, ImageEncoder, read_image
from mmesid_jax.features.image_files import item_image_files
from mmesid_jax.features.item_template import item_texts
from mmesid_jax.features.missing_rows import is_table_up_to_date, write_filled_table, write_record
from mmesid_jax.features.text_encoder import TextEncoder
from mmesid_jax.files.atomic import ITEMS
from mmesid_jax.files.partial_table import PartialTable, partial_table

SHOWN = 3  # broken images that are named


def text(
  data: pathlib.Path,
  model: pathlib.Path,
  *,
  template: str,
  pooling: str | None,
  max_length: int | None,
  batch: int,
  **table: Any,
) -> None:
  """Encodes what the template makes of every item. `table`: as of `_make`. Raises UserError."""
  texts = item_texts(read_objects(data / ITEMS), template)
  given = [i for i, text in enumerate(texts, start=1) if text is not None]
  if not given:
    raise UserError(f"{data}: no item has text for --template={template}")
  encoder = TextEncoder(
    model,
    [texts[i - 1] for i in given],
    pooling=pooling,
    max_length=max_length,
    batch=batch,
  )
  made_from = {"modality": "text", "template": template}
  _make(encoder, given, len(texts), made_from, model=model, **table)
  if encoder.at_limit:
    print(f"{encoder.at_limit:,} texts reach {encoder.limit} tokens; what is behind them is cut")


def visual(
  data: pathlib.Path,
  model: pathlib.Path,
  *,
  images: pathlib.Path,
  key: str,
  pooling: str | None,
  batch: int,
  **table: Any,
) -> None:
  """Encodes the image of every item. `table`: as of `_make`. Raises UserError."""
  files = item_image_files(images, item_keys(data, key), read_objects(data / ITEMS))
  given = [i for i, file in enumerate(files, start=1) if file is not None]
  if not given:
    raise UserError(f"{images}: no item's image is here; expected KEY.jpg, or a manifest of them")
  encoder = ImageEncoder(model, [files[i - 1] for i in given], pooling=pooling, batch=batch)
  broken = _make(encoder, given, len(files), {"modality": "visual"}, model=model, **table)
  if broken:
    reasons = _reasons([files[i - 1] for i in broken[:SHOWN]])
    if len(broken) == len(given):
      raise UserError(f"{images}: all {len(broken):,} images are broken: {reasons}")
    print(f"{len(broken):,} images are broken: {reasons}")


def _make(
  encoder: TextEncoder | ImageEncoder,
  given: list[int],
  num_items: int,
  made_from: dict[str, Any],
  *,
  model: pathlib.Path,
  output: pathlib.Path,
  normalise: bool,
  missing: str,
  dtype: str,
  overwrite: bool,
) -> list[int]:
  """Writes the table and what it was made from, going on from what an earlier run left.

  given: the items that the encoder encodes; returns those that turned out broken.
  """
  made_from |= encoder.made_from | {
    "model": digest_directory(model),
    "normalise": normalise,
    "missing": missing,
    "dtype": dtype,
    "items": digest_json([num_items, given]),
    "device": encoder.device,
    **{name: import_extra(name).__version__ for name in ("torch", "transformers")},
  }
  partial = output.with_name(f"{output.name}.partial")
  if not partial.exists() and is_table_up_to_date(output, made_from, overwrite=overwrite):
    print(f"{output}: up to date")
    return []
  with partial_table(partial, made_from, encoder.width, dtype, overwrite=overwrite) as table:
    _fill(table, encoder, normalise, dtype, partial)
    rows_NV = table.rows()
    items_N = np.array(given)[encoder.order]
    broken = sorted(items_N[np.isnan(rows_NV[:, 0])].tolist())
    if len(broken) == len(given):
      return broken  # told by the caller, who knows why
    lacking = write_filled_table(output, rows_NV, items_N, num_items, missing)
    counts = {"num_items": num_items, "missing": lacking, "broken": len(broken)}
    write_record(output, {"made_from": made_from, "model": str(model), **counts})
    partial.unlink()
  had = {"mean": "the mean of the others", "zero": "zeros"}[missing]
  without = f"; {lacking:,} without {made_from['modality']} have {had}" if lacking else ""
  print(f"{output}: {num_items:,} items, {encoder.width} wide, {dtype}{without}")
  return broken


def _fill(
  table: PartialTable,
  encoder: TextEncoder | ImageEncoder,
  normalise: bool,
  dtype: str,
  path: pathlib.Path,
) -> None:
  """Appends the rows that are not there yet. Whole batches only, each of the same items in every
  run: their company decides the last bits of vectors."""
  total = len(encoder.order)
  done = len(table) if len(table) >= total else len(table) // encoder.batch * encoder.batch
  table.truncate(min(done, total))
  if done:
    print(f"{path}: {done:,} of {total:,} items are encoded; going on")
  work_N = encoder.work  # longest first: items would tell less of the time that is left
  with tqdm(
    total=int(work_N.sum()),
    initial=int(work_N[:done].sum()),
    desc="encode",
    unit=encoder.unit,
    unit_scale=True,
    delay=3,
    leave=False,
  ) as bar:
    try:
      for x_BV in encoder.batches(done):
        if normalise:
          x_BV = x_BV / np.maximum(np.linalg.norm(x_BV, axis=1, keepdims=True), 1e-12)
        with np.errstate(over="ignore"):
          x_BV = x_BV.astype(dtype)
        if np.isinf(x_BV).any():
          raise UserError(f"--dtype={dtype}: cannot hold these vectors; take float32")
        table.append(x_BV)
        bar.update(int(work_N[len(table) - len(x_BV) : len(table)].sum()))
    except KeyboardInterrupt:
      raise Interrupted(
        f"SIGINT with {len(table):,} of {total:,} items encoded, kept in {path}; run the same "
        "command again"
      ) from None


def _reasons(files: Iterable[pathlib.Path]) -> str:
  """Why the first of these images are broken."""
  found = []
  for file in files:
    try:
      read_image(file)
    except BrokenImage as error:
      found.append(f"{file.name} ({error})")
  return ", ".join(found)
