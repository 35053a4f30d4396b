"""Recommendations for the histories that a user of the command names, as text or JSON lines."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from mmesid_jax.data.folder import keys
from mmesid_jax.display import reporter
from mmesid_jax.display.escape import escape_line
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_bytes
from mmesid_jax.serving.recommender import Recommendation
from mmesid_jax.serving.served_model import Options, ServedModel, open_model

NEWEST_SHOWN = 5

Named = list[tuple[str, list[int]]]  # what a history is called, and its item ids


def print_recommendations(
  path: pathlib.Path, source: str, value: str | list[str], options: Options
) -> None:
  """Prints the best items for each history, from the workdir `path`.

  source: the flag that names the histories, one of HISTORIES; `value` is what it was given.
  "histories" gives JSON lines, the others text. Raises UserError.
  """
  served = open_model(path, options)
  named = HISTORIES[source](served, value)
  histories = [history for _, history in named]
  answers = served.model.recommend(histories, options.top_k, repeat=options.repeat)
  for (name, history), answer in zip(named, answers, strict=True):
    if not answer:
      reporter.warn(f"{name}: nothing is left to recommend; {served.model.why_nothing()}")
    if source == "histories":
      items = [recommendation_json(r, served.item_keys) for r in answer]
      reporter.info(json.dumps({"history": history, "items": items}))
    else:
      reporter.info(_as_text(name, history, answer, served))


def _history(served: ServedModel, ids: str) -> Named:
  """One history of item ids, with spaces or commas between them."""
  return [("history", [_parse_id(item, "--history") for item in ids.replace(",", " ").split()])]


def _history_keys(served: ServedModel, item_keys: str) -> Named:
  """One history of item keys, with spaces between them."""
  if served.item_keys is None:
    raise UserError(
      f"--history_keys: {served.workdir.data_dir} holds no keys of items; --history takes ids, and "
      "--key names a field of items.jsonl"
    )
  id_of = {key: item for item, key in enumerate(served.item_keys) if key is not None}
  mistake = f"--history_keys: not one of the {len(id_of):,} items"
  return [("history", _look_up(id_of, item_keys.split(), mistake))]


def _users(served: ServedModel, ids: list[str]) -> Named:
  """The histories of users of the data set, by id."""
  dataset = served.workdir.dataset
  rows = [dataset.row(_parse_id(user, "--user")) for user in ids]
  return _of_rows(served, ids, rows)


def _user_keys(served: ServedModel, wanted: list[str]) -> Named:
  """The histories of users of the data set, by key."""
  workdir, users = served.workdir, len(served.workdir.dataset)
  known = keys.kept_user_keys(workdir.data_dir, users)
  if known is None:
    raise UserError(f"--user_key: {workdir.data_dir} holds no keys of users; --user takes ids")
  row_of = {key: row for row, key in enumerate(known)}
  rows = _look_up(row_of, wanted, f"--user_key: not one of the {users:,} users")
  return _of_rows(served, wanted, rows)


def _file_of_histories(served: ServedModel, file: str) -> Named:
  """A history of item ids from each line of a file."""
  path = pathlib.Path(file)
  try:
    lines = re.split("\r\n?|\n", read_bytes(path).decode("utf-8-sig"))
  except UnicodeDecodeError:
    raise UserError(
      f"--histories={path}: is not text; expected item ids, a history a line"
    ) from None
  if not lines[-1]:
    lines.pop()
  return [
    (f"line {n}", [_parse_id(item, f"{path}:{n}") for item in line.split()])
    for n, line in enumerate(lines, 1)
  ]


# flag -> its histories
HISTORIES = {
  "history": _history,
  "history_keys": _history_keys,
  "user": _users,
  "user_key": _user_keys,
  "histories": _file_of_histories,
}


def _of_rows(served: ServedModel, names: Sequence[str], rows: Sequence[int]) -> Named:
  dataset = served.workdir.dataset
  return [
    (f"user {name}", dataset.sequence(row).tolist()) for name, row in zip(names, rows, strict=True)
  ]


def _look_up(by_key: Mapping[str, int], wanted: Sequence[str], mistake: str) -> list[int]:
  if unknown := [key for key in wanted if key not in by_key]:
    raise UserError(f"{mistake}: {unknown[0]!r} (keys are such as {next(iter(by_key))!r})")
  return [by_key[key] for key in wanted]


def _parse_id(text: str, where: str) -> int:
  if not re.fullmatch("[+-]?[0-9]{1,99}", text):  # int also takes 1_2, and digits of other scripts
    raise UserError(f"{where}: {text!r} is not a whole number")
  return int(text)


def recommendation_json(r: Recommendation, item_keys: Sequence[str | None] | None) -> dict:
  """A recommended item as commands and the service write it, with its key if there is one."""
  key = {"key": item_keys[r.item]} if item_keys and item_keys[r.item] is not None else {}
  title = {} if r.title is None else {"title": r.title}
  parts = {source: round(part, 3) for source, part in r.parts.items()}
  return {"item": r.item, **key, **title, "score": round(r.score, 4), "parts": parts}


def _as_text(
  name: str, history: list[int], answer: list[Recommendation], served: ServedModel
) -> str:
  def label(item: int) -> str:
    key = served.item_keys and served.item_keys[item]
    return escape_line(" ".join(filter(None, (str(item), key, served.titles[item]))))

  newest = "; ".join(label(i) for i in history[-NEWEST_SHOWN:]) or "nothing"
  before = f"{len(history) - NEWEST_SHOWN} earlier; " if len(history) > NEWEST_SHOWN else ""
  lines = [f"\n{escape_line(name)} had: {before}{newest}"]
  for place, r in enumerate(answer, 1):
    shown = {source: part for source, part in r.parts.items() if abs(part) >= 0.005}
    parts = " + ".join(f"{source} {part:.2f}" for source, part in shown.items()) or "0"
    lines.append(f"{place:3}. {label(r.item)}  score {r.score:.2f} = {parts}")
  return "\n".join(lines)
