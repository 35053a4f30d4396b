"""Recommends: python -m mmesid_jax.recommend --workdir=DIR --history="12 57 901" --top_k=10

--user=1,2,3 takes users of the data set with their whole history; --histories=FILE reads one
history of item ids a line and writes one JSON line each to stdout. --new_items=FILE adds items that
training never saw, as mmesid_jax.semantic_ids encodes them; their ids follow the catalogue's.
"""

import pathlib

from absl import flags

from mmesid_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
HISTORY = flags.DEFINE_string(
  "history", None, 'Item ids, oldest first: "12 57 901"; "" = a new user.'
)
USER = flags.DEFINE_list("user", None, "User ids of the data set.")
HISTORIES = flags.DEFINE_string("histories", None, "File with one history a line; JSON lines out.")
NEW_ITEMS = flags.DEFINE_string(
  "new_items", None, "Items to add to the catalogue: what mmesid_jax.semantic_ids encode wrote."
)
TOP_K = flags.DEFINE_integer("top_k", 10, "How many items.", lower_bound=1)
REPEAT = flags.DEFINE_bool("repeat", False, "Recommend items of the history too.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved.")
flags.mark_flag_as_required("workdir")
flags.mark_flags_as_mutual_exclusive(["history", "user", "histories"], required=True)


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax import recommending

  recommending.run(
    pathlib.Path(WORKDIR.value),
    history=HISTORY.value,
    users=USER.value,
    histories=HISTORIES.value,
    new_items=NEW_ITEMS.value,
    top_k=TOP_K.value,
    repeat=REPEAT.value,
    data_dir=DATA_DIR.value,
  )


if __name__ == "__main__":
  cli.run(main)
