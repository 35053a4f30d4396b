"""Recommends: python -m mmesid_jax.recommend --workdir=DIR --history="12 57 901" --top_k=10

--user=1,2,3 takes users of the data set with their whole history; --histories=FILE reads one
history of item ids a line and writes one JSON line each to stdout. Where the data set keeps keys,
--user_key and --history_keys take those. --new_items=FILE adds items that training never saw, as
mmesid_jax.semantic_ids encodes them; their ids follow the catalogue's. With --only_new nothing else
is recommended.

--all_users --output=recs.parquet (or .jsonl) writes a file with a row for every user of the data
set. It is made in parts, which lie in recs.parquet.parts until all are done: the same command goes
on where one that was stopped or killed left off.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
HISTORY = flags.DEFINE_string(
  "history", None, 'Item ids, oldest first: "12 57 901"; "" = a new user.'
)
USER = flags.DEFINE_list("user", None, "User ids of the data set.")
USER_KEY = flags.DEFINE_multi_string(
  "user_key", None, "Key of a user, as users.jsonl has it; may be given more than once."
)
HISTORY_KEYS = flags.DEFINE_string(
  "history_keys", None, "Keys of items, as items.jsonl has them, oldest first, spaces between."
)
HISTORIES = flags.DEFINE_string("histories", None, "File with one history a line; JSON lines out.")
ALL_USERS = flags.DEFINE_bool("all_users", False, "Every user of the data set, into --output.")
OUTPUT = flags.DEFINE_string(
  "output", None, "The .parquet or .jsonl file to be written, with --all_users."
)
NEW_ITEMS = flags.DEFINE_string(
  "new_items", None, "Items to add to the catalogue: what mmesid_jax.semantic_ids encode wrote."
)
ONLY_NEW = flags.DEFINE_bool("only_new", False, "Recommend none but those of --new_items.")
TOP_K = flags.DEFINE_integer("top_k", 10, "How many items.", lower_bound=1)
REPEAT = flags.DEFINE_bool("repeat", False, "Recommend items of the history too.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved.")
KEY = flags.DEFINE_string("key", None, "Field of items.jsonl that holds the keys, if not `key`.")
flags.mark_flag_as_required("workdir")
SOURCES = (HISTORY, HISTORY_KEYS, USER, USER_KEY, HISTORIES, ALL_USERS)


def main(argv: list[str]) -> None:
  del argv
  given = [f"--{source.name}" for source in SOURCES if source.value not in (None, False)]
  if len(given) != 1:
    names = ", ".join(f"--{source.name}" for source in SOURCES)
    raise UserError(f"expected one of {names}; found {' and '.join(given) or 'none'}")
  if bool(ALL_USERS.value) != (OUTPUT.value is not None):
    raise UserError("--all_users and --output=FILE belong together; one of them is missing")
  from mmesid_jax.serving import answer

  path = pathlib.Path(WORKDIR.value)
  options = {
    "new_items": NEW_ITEMS.value,
    "only_new": ONLY_NEW.value,
    "top_k": TOP_K.value,
    "repeat": REPEAT.value,
    "data_dir": DATA_DIR.value,
    "key": KEY.value,
  }
  if ALL_USERS.value:
    answer.run_all_users(path, pathlib.Path(OUTPUT.value), **options)
    return
  answer.run(
    path,
    history=HISTORY.value,
    history_keys=HISTORY_KEYS.value,
    users=USER.value,
    user_keys=USER_KEY.value,
    histories=HISTORIES.value,
    **options,
  )


if __name__ == "__main__":
  command_line.run_command(main)
