"""What the command `semantic_ids export` does: the catalogue's codes in a file of a row an item."""

import pathlib

from mmesid_jax.data.folder import keys
from mmesid_jax.errors import UserError
from mmesid_jax.files import rows
from mmesid_jax.stages import semantic_id_stage
from mmesid_jax.stages.workdir import reopen_workdir

ITEM = {"item_id": int, "key": str, "title": str}


def run(
  workdir: pathlib.Path, output: pathlib.Path, *, data_dir: str | None, key: str | None
) -> None:
  """Columns: item_id; key and title where the data set has them; and of every modality, under its
  name, the codes from the first level to the last. key: the field of items.jsonl that holds the
  keys, None = `key`, if it is there. Raises UserError."""
  rows.check_rows_file(output)
  opened = reopen_workdir(workdir, data_dir)
  found = semantic_id_stage.read_semantic_ids(opened)
  num_items = opened.dataset.num_items
  if found.header["num_items"] != num_items:
    raise UserError(
      f"{opened.data_dir}: {num_items:,} items; "
      f"{opened.artifact(semantic_id_stage.SEMANTIC_IDS.name)} was made for {found.header['num_items']:,}"
    )
  titles = opened.dataset.titles()[1:]
  known = {
    "item_id": list(range(1, num_items + 1)),
    "key": keys.kept_item_keys(opened.data_dir, key),
    "title": titles if any(titles) else None,
  }
  codes = {m: code_IL[1:].tolist() for m, code_IL in found.codes.items()}
  if taken := ITEM.keys() & codes.keys():
    raise UserError(f"the modality {min(taken)} has the name of another column of {output}")
  schema = {name: kind for name, kind in ITEM.items() if known[name] is not None}
  schema |= dict.fromkeys(codes, list[int])
  rows.write_rows(output, schema, known | codes)
  print(f"{output}: {num_items:,} items, {', '.join(schema)}")
