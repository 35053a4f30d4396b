"""Makes the vectors of new items from their fields, as the command `encode` made the tables."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmesid_jax.config.schema import modalities
from mmesid_jax.data.features import open_features
from mmesid_jax.data.folder.file_names import ITEMS
from mmesid_jax.data.folder.items import read_item_objects
from mmesid_jax.errors import UserError
from mmesid_jax.features.item_template import ItemTemplate
from mmesid_jax.features.missing_rows import record_path
from mmesid_jax.features.sentence_modules import Normalize
from mmesid_jax.features.text_encoder import TextEncoder
from mmesid_jax.features.tfidf_encoder import TFIDF, TfidfEncoder
from mmesid_jax.files.provenance import MADE_FROM
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.stages.workdir import Workdir

CHECKED = 16  # items that are encoded again, to compare with their rows
TOLERANCE = 0.02  # most difference, as a share of a row's length: bfloat16 here, float32 there
BATCH = 64
DTYPES = {"float32": np.float32, "float16": np.float16}

Fields = Mapping[str, Any]  # of an item, as in items.jsonl


class _Table(NamedTuple):
  """A table of text vectors, and how to make more rows of it."""

  template: ItemTemplate
  encode: Callable[[Sequence[str]], np.ndarray]  # texts -> float32 [E, V]


class ItemTexts:
  """Encodes new items of a workdir whose tables of text vectors the command `encode` made.

  The models are read at once: TF-IDF counts the catalogue again, a model is read from the folder
  that the record beside the table names.

  Raises UserError where no table was made from texts, for a model that cannot be read, and for
  one that does not give the rows of the table.
  """

  def __init__(self, workdir: Workdir):
    self._tables: dict[str, _Table] = {}
    items = None
    for modality in modalities(workdir.config):
      table = workdir.feature_file(modality)
      if table is None or (record := _text_record(table)) is None:
        continue
      items = items or read_item_objects(workdir.data_dir / ITEMS)
      self._tables[modality] = _open_table(table, record, items)
    if not self._tables:
      raise UserError(
        f"{workdir.feature_dir}: no table of features was made from texts by mmesid_jax.encode, so "
        "new items need vectors"
      )

  def vectors(self, items: Sequence[Fields]) -> dict[str, np.ndarray]:
    """The vectors of items by modality, float32 [E, V], from fields as in items.jsonl.

    Raises UserError for an item without a text that the encoder knows.
    """
    return {modality: _encode(table, items, modality) for modality, table in self._tables.items()}


def _text_record(table: pathlib.Path) -> dict[str, Any] | None:
  """The record of `encode` beside the table; None where it was not made from texts."""
  if not record_path(table).is_file():
    return None
  record = read_json_object(record_path(table))
  made_from = record.get(MADE_FROM)
  return record if isinstance(made_from, dict) and "template" in made_from else None


def _open_table(path: pathlib.Path, record: Mapping[str, Any], items: Sequence[Fields]) -> _Table:
  """Raises UserError, also for a record with values of other types."""
  made_from = record[MADE_FROM]
  try:
    template, normalize = ItemTemplate(made_from["template"]), bool(made_from["normalize"])
    dtype = DTYPES[made_from["dtype"]]
    texts = {i: text for i, item in enumerate(items, 1) if (text := template(item)) is not None}
    if made_from["model"] == TFIDF:
      encoder = TfidfEncoder([*texts.values()])
    else:
      encoder = TextEncoder(
        pathlib.Path(record["model"]),
        [],
        pooling=made_from["pooling"],
        max_length=made_from["max_length"],
        batch=BATCH,
      )
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{record_path(path)}: does not say how the table was made ({error!r}); run "
      "mmesid_jax.encode again"
    ) from None

  def encode(texts: Sequence[str]) -> np.ndarray:
    x_EV = encoder.encode(texts)
    if normalize:
      x_EV = Normalize()(x_EV)
    return x_EV.astype(dtype).astype(np.float32)

  _check_rows(path, encode, texts, len(items))
  return _Table(template, encode)


def _check_rows(path: pathlib.Path, encode, texts: Mapping[int, str], num_items: int) -> None:
  """Raises UserError unless some items get the rows that they have in the table. texts: by item,
  of those that have one."""
  rows_IV = open_features(path, num_items)
  some = sorted(texts)[:: max(len(texts) // CHECKED, 1)]
  x_EV, row_EV = encode([texts[i] for i in some]), np.asarray(rows_IV[some], np.float32)
  known_E = x_EV.any(axis=1)  # the others have the mean row
  same_width = x_EV.shape[1] == row_EV.shape[1]
  if not (same_width and known_E.any() and _are_close(x_EV[known_E], row_EV[known_E])):
    raise UserError(
      f"{path}: the encoder named in {record_path(path).name} does not give its rows again; has "
      f"{ITEMS} or the encoder changed?"
    )


def _are_close(x_EV: np.ndarray, row_EV: np.ndarray) -> bool:
  difference_E = np.linalg.norm(x_EV - row_EV, axis=1)
  return bool((difference_E <= TOLERANCE * np.linalg.norm(row_EV, axis=1)).all())


def _encode(table: _Table, items: Sequence[Fields], modality: str) -> np.ndarray:
  texts = []
  for number, item in enumerate(items, 1):
    text = table.template(item)
    if text is None:
      fields = " or ".join(table.template.fields)
      raise UserError(f"item {number}: has no {fields}, of which its vector of {modality} is made")
    texts.append(text)
  x_EV = table.encode(texts)
  for number, (text, x_V) in enumerate(zip(texts, x_EV, strict=True), 1):
    if not x_V.any():
      raise UserError(f"item {number}: the catalogue has none of the words in {text[:60]!r}")
  return x_EV
