"""Recommendations for the histories that a user of the command names, as text or JSON lines."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from mmesid_jax.display import reporter
from mmesid_jax.display.escape import escape_line
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_bytes
from mmesid_jax.serving.options import Options, open_recommender
from mmesid_jax.serving.recommender import Name, Recommendation, Recommender

NEWEST_SHOWN = 5

Named = list[tuple[str, list[int]]]  # what a history is called, and its item ids


def print_recommendations(
  path: pathlib.Path, source: str, value: str | list[str], options: Options
) -> None:
  """Prints the best items for each history, from the workdir `path`.

  source: the flag that names the histories, one of HISTORIES; `value` is what it was given.
  "histories" gives JSON lines, the others text. Raises UserError.
  """
  model = open_recommender(path, options)
  named = HISTORIES[source](model, value)
  histories = [history for _, history in named]
  answers = model.recommend(histories, options.top_k, repeat=options.repeat)
  for (name, history), answer in zip(named, answers, strict=True):
    if not answer:
      reporter.warn(f"{name}: nothing is left to recommend; {model.why_nothing()}")
    if source == "histories":
      items = [recommendation_json(r) for r in answer]
      reporter.info(json.dumps({"history": history, "items": items}))
    else:
      reporter.info(_as_text(name, history, answer, model))


def _history(model: Recommender, ids: str) -> Named:
  """One history of item ids, with spaces or commas between them."""
  return [("history", [_parse_id(item, "--history") for item in ids.replace(",", " ").split()])]


def _history_keys(model: Recommender, item_keys: str) -> Named:
  """One history of item keys, with spaces between them."""
  if model.item_keys is None:
    raise UserError(
      f"--history_keys: {model.workdir.data_dir} holds no keys of items; --history takes ids, and "
      "--key names a field of items.jsonl"
    )
  return [("history", [_of_flag("--history_keys", model.item_id, k) for k in item_keys.split()])]


def _users(model: Recommender, ids: list[str]) -> Named:
  """The histories of users of the data set, by id."""
  users = [_parse_id(user, "--user") for user in ids]
  return [(f"user {user}", _of_flag("--user", model.history, user)) for user in users]


def _user_keys(model: Recommender, wanted: list[str]) -> Named:
  """The histories of users of the data set, by key."""
  if model.user_keys is None:
    data_dir = model.workdir.data_dir
    raise UserError(f"--user_key: {data_dir} holds no keys of users; --user takes ids")
  return [(f"user {key}", _of_flag("--user_key", model.history, key)) for key in wanted]


def _file_of_histories(model: Recommender, file: str) -> Named:
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


def _of_flag(flag: str, look_up: Callable[[Name], Any], name: Name) -> Any:
  try:
    return look_up(name)
  except UserError as error:
    raise UserError(f"{flag}: {error}") from None


def _parse_id(text: str, where: str) -> int:
  if not re.fullmatch("[+-]?[0-9]{1,99}", text):  # int also takes 1_2, and digits of other scripts
    raise UserError(f"{where}: {text!r} is not a whole number")
  return int(text)


def recommendation_json(r: Recommendation) -> dict:
  """A recommended item as commands and the service write it, with key and title if known."""
  key = {} if r.key is None else {"key": r.key}
  title = {} if r.title is None else {"title": r.title}
  parts = {source: round(part, 3) for source, part in r.parts.items()}
  return {"item": r.item, **key, **title, "score": round(r.score, 4), "parts": parts}


def _as_text(
  name: str, history: list[int], answer: list[Recommendation], model: Recommender
) -> str:
  def label(item: int) -> str:
    key = model.item_keys and model.item_keys[item]
    return escape_line(" ".join(filter(None, (str(item), key, model.titles[item]))))

  newest = "; ".join(label(i) for i in history[-NEWEST_SHOWN:]) or "nothing"
  before = f"{len(history) - NEWEST_SHOWN} earlier; " if len(history) > NEWEST_SHOWN else ""
  lines = [f"\n{escape_line(name)} had: {before}{newest}"]
  for place, r in enumerate(answer, 1):
    shown = {source: part for source, part in r.parts.items() if abs(part) >= 0.005}
    parts = " + ".join(f"{source} {part:.2f}" for source, part in shown.items()) or "0"
    lines.append(f"{place:3}. {label(r.item)}  score {r.score:.2f} = {parts}")
  return "\n".join(lines)
