"""What the command `recommend` does: reads histories and prints a readable list or JSON lines, or
has a file of recommendations for all users written."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmesid_jax.data.folder import keys
from mmesid_jax.errors import UserError
from mmesid_jax.files import rows as exports
from mmesid_jax.serving import all_users
from mmesid_jax.serving.recommender import Recommendation, Recommender
from mmesid_jax.stages.workdir import Workdir, reopen_workdir

NEWEST_SHOWN = 5


class Opened(NamedTuple):
  """A trained workdir, and what is known of the items: by item id, row 0 unused, new items last."""

  workdir: Workdir
  model: Recommender
  titles: list[str | None]
  item_keys: list[str | None] | None  # None = the data set keeps none


def open_model(
  workdir: pathlib.Path,
  *,
  new_items: str | None,
  only_new: bool,
  data_dir: str | None,
  key: str | None,
) -> Opened:
  """new_items: a file of items to be appended to the catalogue, only_new: which alone are to be
  recommended; key: the field of items.jsonl that holds the keys, None = `key`, if it is there.
  Raises UserError."""
  if only_new and new_items is None:
    raise UserError("--only_new: name the new items with --new_items=FILE")
  opened = reopen_workdir(workdir, data_dir)
  titles = opened.dataset.titles()
  item_keys = keys.kept_item_keys(opened.data_dir, key)
  model = Recommender.load(workdir, titles)
  if model.num_items != opened.dataset.num_items:
    raise UserError(
      f"{opened.data_dir}: {opened.dataset.num_items:,} items; the model of {workdir} was trained "
      f"with {model.num_items:,}"
    )
  added = model.add_items(new_items) if new_items is not None else ()
  if only_new:
    model.offer(added)
  titles += [f"(new item {n})" for n in range(1, len(added) + 1)]
  return Opened(opened, model, titles, item_keys and [None, *item_keys, *(None for _ in added)])


def run(
  workdir: pathlib.Path,
  *,
  history: str | None,
  history_keys: str | None,
  users: list[str] | None,
  user_keys: list[str] | None,
  histories: str | None,
  new_items: str | None,
  only_new: bool,
  top_k: int,
  repeat: bool,
  data_dir: str | None,
  key: str | None,
) -> None:
  """Exactly one of history, history_keys, users, user_keys, histories is given; the others as
  `open_model` says. Raises UserError."""
  opened = open_model(workdir, new_items=new_items, only_new=only_new, data_dir=data_dir, key=key)
  dataset = opened.workdir.dataset
  names, rows = ["history"], None
  if users is not None:
    names, rows = users, [dataset.row(_integer(user, "--user")) for user in users]
  elif user_keys is not None:
    names, rows = user_keys, _rows_of(opened.workdir, user_keys)
  if rows is not None:
    names = [f"user {name}" for name in names]
    read = [dataset.sequence(row).tolist() for row in rows]
  elif histories is not None:
    read = _read(pathlib.Path(histories))
  elif history_keys is not None:
    read = [_ids_of(opened, history_keys.split())]
  else:
    read = [[_integer(item, "--history") for item in history.replace(",", " ").split()]]
  answers = opened.model.recommend(read, top_k, repeat=repeat)
  if histories is not None:
    for one_history, answer in zip(read, answers, strict=True):
      items = [_as_json(r, opened.item_keys) for r in answer]
      print(json.dumps({"history": one_history, "items": items}))
    return
  for name, one_history, answer in zip(names, read, answers, strict=True):
    print(_as_text(name, one_history, answer, opened))


def run_all_users(
  workdir: pathlib.Path,
  output: pathlib.Path,
  *,
  new_items: str | None,
  only_new: bool,
  top_k: int,
  repeat: bool,
  data_dir: str | None,
  key: str | None,
) -> None:
  """Writes `batch_recommending`'s file. Raises UserError, and Interrupted."""
  exports.check_rows_file(output)
  opened = open_model(workdir, new_items=new_items, only_new=only_new, data_dir=data_dir, key=key)
  all_users.write(
    opened.workdir,
    opened.model,
    output,
    item_keys=opened.item_keys,
    new_items=new_items,
    only_new=only_new,
    top_k=top_k,
    repeat=repeat,
  )


def _rows_of(workdir: Workdir, user_keys: Sequence[str]) -> list[int]:
  """Rows of the users of these keys. Raises UserError."""
  users = len(workdir.dataset)
  kept = keys.kept_user_keys(workdir.data_dir, users)
  if kept is None:
    raise UserError(f"--user_key: {workdir.data_dir} holds no keys of users; --user takes ids")
  row_of = {key: row for row, key in enumerate(kept)}
  return _places(row_of, user_keys, f"--user_key: not one of the {users:,} users")


def _ids_of(opened: Opened, item_keys: Sequence[str]) -> list[int]:
  """Ids of the items of these keys. Raises UserError."""
  if opened.item_keys is None:
    raise UserError(
      f"--history_keys: {opened.workdir.data_dir} holds no keys of items; --history takes ids, and "
      "--key names a field of items.jsonl"
    )
  id_of = {key: item for item, key in enumerate(opened.item_keys) if key is not None}
  return _places(id_of, item_keys, f"--history_keys: not one of the {len(id_of):,} items")


def _places(place_of: Mapping[str, int], wanted: Sequence[str], mistake: str) -> list[int]:
  if unknown := [key for key in wanted if key not in place_of]:
    raise UserError(f"{mistake}: {unknown[0]!r} (keys are such as {next(iter(place_of))!r})")
  return [place_of[key] for key in wanted]


def _integer(text: str, where: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{where}: {text!r} is not a whole number") from None


def _read(path: pathlib.Path) -> list[list[int]]:
  if not path.is_file():
    raise UserError(f"--histories={path}: no such file")
  try:
    lines = path.read_bytes().decode().splitlines()
  except UnicodeDecodeError:
    raise UserError(
      f"--histories={path}: is not text; expected item ids, a history a line"
    ) from None
  return [[_integer(t, f"{path}:{n}") for t in line.split()] for n, line in enumerate(lines, 1)]


def _as_json(r: Recommendation, item_keys: Sequence[str | None] | None) -> dict:
  key = {"key": item_keys[r.item]} if item_keys and item_keys[r.item] is not None else {}
  title = {} if r.title is None else {"title": r.title}
  return {"item": r.item, **key, **title, "score": round(r.score, 4), "parts": _rounded(r)}


def _rounded(r: Recommendation) -> dict[str, float]:
  return {source: round(part, 3) for source, part in r.parts.items()}


def _as_text(name: str, history: list[int], answer: list[Recommendation], opened: Opened) -> str:
  def named(item: int) -> str:
    key = opened.item_keys and opened.item_keys[item]
    return " ".join(filter(None, (str(item), key, opened.titles[item])))

  newest = "; ".join(named(i) for i in history[-NEWEST_SHOWN:]) or "nothing"
  before = f"{len(history) - NEWEST_SHOWN} earlier; " if len(history) > NEWEST_SHOWN else ""
  lines = [f"\n{name} had: {before}{newest}"]
  for place, r in enumerate(answer, 1):
    parts = " + ".join(f"{source} {part:.2f}" for source, part in r.parts.items())
    lines.append(f"{place:3}. {named(r.item)}  score {r.score:.2f} = {parts}")
  return "\n".join(lines)
