"""What the command `recommend` does: reads histories, prints a readable list or JSON lines."""

import json
import pathlib

from mmesid_jax import pipeline
from mmesid_jax.errors import UserError
from mmesid_jax.serving import Recommendation, Recommender

NEWEST_SHOWN = 5


def run(
  workdir: pathlib.Path,
  *,
  history: str | None,
  users: list[str] | None,
  histories: str | None,
  new_items: str | None,
  top_k: int,
  repeat: bool,
  data_dir: str | None,
) -> None:
  """Exactly one of history, users, histories is given. new_items: a file of items to be appended to
  the catalogue. Raises UserError."""
  opened = pipeline.reopen(workdir, data_dir)
  dataset = opened.dataset
  titles = dataset.titles()
  model = Recommender.load(workdir, titles)
  if new_items is not None:
    added = model.add_items(new_items)
    titles += [f"(new item {n})" for n in range(1, len(added) + 1)]
  if users is not None:
    rows = [dataset.row(_integer(user, "--user")) for user in users]
    read = [dataset.sequence(row).tolist() for row in rows]
    names = [f"user {user}" for user in users]
  elif histories is not None:
    read, names = _read(pathlib.Path(histories)), []
  else:
    read = [[_integer(item, "--history") for item in history.replace(",", " ").split()]]
    names = ["history"]
  answers = model.recommend(read, top_k, repeat=repeat)
  if histories is not None:
    for one_history, answer in zip(read, answers, strict=True):
      print(json.dumps({"history": one_history, "items": [_as_json(r) for r in answer]}))
    return
  for name, one_history, answer in zip(names, read, answers, strict=True):
    print(_as_text(name, one_history, answer, titles))


def _integer(text: str, where: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{where}: {text!r} is not a whole number") from None


def _read(path: pathlib.Path) -> list[list[int]]:
  if not path.is_file():
    raise UserError(f"--histories={path}: no such file")
  lines = path.read_text().splitlines()
  return [[_integer(t, f"{path}:{n}") for t in line.split()] for n, line in enumerate(lines, 1)]


def _as_json(r: Recommendation) -> dict:
  title = {} if r.title is None else {"title": r.title}
  return {"item": r.item, **title, "score": round(r.score, 4), "weights": _rounded(r)}


def _rounded(r: Recommendation) -> dict[str, float]:
  return {source: round(weight, 3) for source, weight in r.weights.items()}


def _as_text(name: str, history: list[int], answer: list[Recommendation], titles) -> str:
  def named(item: int) -> str:
    return f"{item} {titles[item]}" if titles[item] else str(item)

  newest = "; ".join(named(i) for i in history[-NEWEST_SHOWN:]) or "nothing"
  before = f"{len(history) - NEWEST_SHOWN} earlier; " if len(history) > NEWEST_SHOWN else ""
  lines = [f"\n{name} had: {before}{newest}"]
  for place, r in enumerate(answer, 1):
    weights = ", ".join(f"{source} {weight:.2f}" for source, weight in r.weights.items())
    lines.append(f"{place:3}. {named(r.item)}  score {r.score:.2f}  ({weights})")
  return "\n".join(lines)
