"""Formats of the MovieLens files as GroupLens publishes them.

They are ratings.csv and movies.csv (20M, 25M, 32M, latest), ratings.dat and movies.dat (1M, 10M),
and u.data (100K).
"""

from collections.abc import Sequence
from pathlib import Path

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.tables import TableLayout

CSV = TableLayout(
  {"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"}
  | {"title": "title", "categories": "genres"}
)
EVENTS = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
MOVIES = {"item": "item", "title": "title", "categories": "genres"}
DAT = {"delimiter": "::", "fallback": "latin-1", "quoting": "none"}  # 10M is UTF-8, 1M is not
RATINGS_DAT = TableLayout(EVENTS, header=("user", "item", "rating", "time"), **DAT)
MOVIES_DAT = TableLayout(MOVIES, header=("item", "title", "genres"), **DAT)
U_DATA = TableLayout(EVENTS, delimiter="\t", header=("user", "item", "rating", "time"))


def is_known(path: Path, names: Sequence[str], *, of_items: bool) -> bool:
  """Whether the name of a file, or `names`, the words of its first line, are MovieLens's."""
  if ".csv" in path.name:
    return {"movieId", "title" if of_items else "userId"} <= {*names}
  prefixes = ("movies.dat", "u.item") if of_items else ("ratings.dat", "u.data")
  return path.name.startswith(prefixes)


def file_layout(path: Path, *, of_items: bool) -> TableLayout:
  """Returns the format of a file by its name. Raises UserError for an unknown name."""
  name = path.name
  if ".csv" in name:
    return CSV
  if ".dat" in name and not name.startswith("u.data"):
    return MOVIES_DAT if of_items else RATINGS_DAT
  if name.startswith("u.data") and not of_items:
    return U_DATA
  expected = "movies.csv or movies.dat" if of_items else "ratings.csv, ratings.dat or u.data"
  raise UserError(f"{path}: expected MovieLens's {expected} (a .gz or .zst of it)")
