"""Formats of the MovieLens files as GroupLens publishes them.

They are ratings.csv and movies.csv (20M, 25M, 32M, latest), ratings.dat and movies.dat (1M, 10M),
u.data and u.item (100K).
"""

from collections.abc import Sequence
from pathlib import Path

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.compressed_lines import read_lines
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
# u.item has a column for every genre, 1 or 0.
GENRES = (
  *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
  *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
  *("Thriller", "War", "Western"),
)
U_ITEM = ("item", "title", "released", "video released", "url", *GENRES)


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
  if name.startswith("u.item") and of_items:
    return _u_item_layout(path)
  expected = (
    "movies.csv, movies.dat or u.item" if of_items else "ratings.csv, ratings.dat or u.data"
  )
  raise UserError(f"{path}: expected MovieLens's {expected} (a .gz or .zst of it)")


def _u_item_layout(path: Path) -> TableLayout:
  """Returns the format of u.item; copies with the first of its columns only are read as well."""
  _, line = next(read_lines(path), (0, b""))
  header = U_ITEM[: line.count(b"|") + 1]
  return TableLayout(
    {"item": "item", "title": "title"},
    delimiter="|",
    header=header,
    fallback="latin-1",
    quoting="none",
    flags=tuple(genre for genre in header if genre in GENRES[1:]),
  )
