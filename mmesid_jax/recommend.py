"""Recommends items to a user, for a history of items, or to all users.

Examples:
  python -m mmesid_jax.recommend --workdir=runs/quickstart --history="12 57 401" --top_k=5
  python -m mmesid_jax.recommend --workdir=runs/quickstart --all_users --output=recs.parquet

--user=1,2,3 takes users of the data set with their whole history. --histories=FILE reads one
history of item ids from each line and writes one JSON line each to stdout. Where the data set keeps
keys, --user_key and --history_keys take those.

--all_users --output=recs.parquet (or .jsonl) writes a row for every user of the data set, a name
that ends in .csv a row for every recommended item. The file is made in parts, kept in
recs.parquet.parts until all are done: the same command continues a run that was stopped or killed.

--split=test (or valid) gives each user the history before the held-out item of that part, and a
column with this item: the lists that `evaluate` ranks by, for checking its metrics from outside.

What is served is the blend where the workdir holds one; --model=network serves the network alone,
--model=generated the items whose semantic IDs it generates, --model=summed the sum of both.

--new_items=FILE adds items that training never saw, as `semantic_ids encode` writes them; their ids
follow those of the catalogue.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.config.schema import SERVED
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
HISTORY = flags.DEFINE_string(
  "history", None, 'Item ids, oldest first: "12 57 901"; "" = a new user.'
)
USER = flags.DEFINE_list("user", None, "User ids of the data set.")
USER_KEY = flags.DEFINE_multi_string("user_key", None, "Key of a user, as in users.jsonl.")
HISTORY_KEYS = flags.DEFINE_string(
  "history_keys", None, "Keys of items, as in items.jsonl, oldest first, spaces between."
)
HISTORIES = paths.define_path("histories", None, "File with one history a line; JSON lines out.")
ALL_USERS = flags.DEFINE_bool("all_users", False, "Every user of the data set, into --output.")
OUTPUT = paths.define_path(
  "output", None, "The .parquet, .jsonl or .csv file to write, with --all_users."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file --output that exists.")
SPLIT = flags.DEFINE_enum(
  "split", None, ["valid", "test"], "With --all_users: the history before these held-out items."
)
NEW_ITEMS = paths.define_path(
  "new_items", None, "Items to add to the catalogue: a file of `semantic_ids encode`."
)
ONLY_NEW = flags.DEFINE_bool("only_new", False, "Recommend only the items of --new_items.")
TOP_K = flags.DEFINE_integer("top_k", 10, "Number of items.", lower_bound=1, upper_bound=1_000_000)
MODEL = flags.DEFINE_enum(
  "model",
  None,
  SERVED,
  "The model that is served; if not given, the blend if any.",
)
REPEAT = flags.DEFINE_bool("repeat", False, "Recommend items of the history too.")
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, if it has moved.")
KEY = flags.DEFINE_string("key", None, "Field of items.jsonl that holds the keys, if not `key`.")
SOURCES = ("history", "history_keys", "user", "user_key", "histories", "all_users")
GROUPS = {
  "Required": "workdir=DIR",
  "For whom; exactly one": "history=IDS history_keys=KEYS user=IDS user_key=KEY histories=FILE "
  "all_users",
  "What": "model top_k repeat split new_items=FILE only_new",
  "Files": "output=FILE overwrite data_dir=DIR key=FIELD",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("workdir", SOURCES)
  if bool(ALL_USERS.value) != (OUTPUT.value is not None):
    raise UserError("--all_users and --output=FILE belong together; one of them is missing")
  if SPLIT.value and not ALL_USERS.value:
    raise UserError("--split: belongs to --all_users; other histories are read as they are")
  if OVERWRITE.value and not ALL_USERS.value:
    raise UserError("--overwrite: belongs to --all_users, which writes a file")
  from mmesid_jax.serving.options import Options

  path = pathlib.Path(WORKDIR.value)
  options = Options(
    top_k=TOP_K.value,
    repeat=REPEAT.value,
    model=MODEL.value,
    new_items=NEW_ITEMS.value,
    only_new=ONLY_NEW.value,
    data_dir=DATA_DIR.value,
    key=KEY.value,
  )
  if ALL_USERS.value:
    from mmesid_jax.serving.all_users import write_all_users

    write_all_users(
      path, pathlib.Path(OUTPUT.value), options, SPLIT.value, overwrite=OVERWRITE.value
    )
    return
  from mmesid_jax.serving.answer import print_recommendations

  (source,) = (name for name in SOURCES[:-1] if flags.FLAGS[name].value is not None)
  print_recommendations(path, source, flags.FLAGS[source].value, options)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
