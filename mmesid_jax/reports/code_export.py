"""Exports the semantic IDs of all items to a file with one row per item."""

import pathlib

from mmesid_jax.data.folder import keys
from mmesid_jax.data.folder.file_names import refuse_data_file
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files import rows
from mmesid_jax.files.atomic import check_new_file
from mmesid_jax.stages.semantic_id_stage import read_semantic_ids
from mmesid_jax.stages.workdir import reopen_workdir

ITEM = {"item_id": int, "key": str, "title": str}


def export_codes(
  workdir: pathlib.Path,
  output: pathlib.Path,
  *,
  data_dir: str | None,
  key: str | None,
  overwrite: bool = False,
) -> None:
  """Writes a row per item: its id, key, title, and the codes of every modality.

  A column with codes has the name of its modality and lists them from the first level to the last.

  Args:
    workdir: a folder with a finished semantic-ID stage.
    output: the file, .parquet or .jsonl.
    data_dir: where the data is, if it has moved.
    key: the field of items.jsonl that holds the keys; None = `key`, if there is one.
    overwrite: whether a file that exists is replaced.

  Key and title are left out where the data set has none. Raises UserError, for example for other
  data than the IDs were made for.
  """
  rows.check_rows_file(output)
  refuse_data_file(output)
  check_new_file(output, overwrite=overwrite)
  opened = reopen_workdir(workdir, data_dir)
  ids = read_semantic_ids(opened)
  num_items = opened.dataset.num_items
  titles = opened.dataset.titles()[1:]
  known = {
    "item_id": list(range(1, num_items + 1)),
    "key": keys.kept_item_keys(opened.data_dir, key),
    "title": titles if any(titles) else None,
  }
  codes = {m: code_IL[1:].tolist() for m, code_IL in ids.codes.items()}
  if taken := ITEM.keys() & codes.keys():
    raise UserError(f"the modality {min(taken)} has the name of another column of {output}")
  schema = {name: kind for name, kind in ITEM.items() if known[name] is not None}
  schema |= dict.fromkeys(codes, list[int])
  rows.write_rows(output, schema, known | codes)
  reporter.info(f"{output}: {num_items:,} items, {', '.join(schema)}")
