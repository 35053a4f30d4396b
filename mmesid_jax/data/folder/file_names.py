"""The names of the plain files in a data set's folder."""

from pathlib import Path

from mmesid_jax.errors import UserError

SEQUENCES, ITEMS, USERS, TIMES = "sequences.txt", "items.jsonl", "users.jsonl", "times.npy"


def refuse_data_file(output: Path) -> None:
  """Raises UserError for an output in a data set's folder by the name of one of its own files."""
  own = output.name in (SEQUENCES, ITEMS, USERS, TIMES)
  others = {SEQUENCES, ITEMS} - {output.name}  # alone it may be an earlier output of that name
  if own and any((output.parent / name).exists() for name in others):
    raise UserError(f"{output}: {output.name} is a name of the data set's own; take another name")
