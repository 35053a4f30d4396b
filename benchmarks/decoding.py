"""Speed of generating items, and how many of the best ones a beam finds:

  python benchmarks/decoding.py --workdir=runs/tiger --output=runs/decoding

The workdir holds a recommender with head=generate or both; histories are those of its data set's
users. Four tables, and OUTPUT/decoding.json:

  search   users a second at several beams, by our search and by transformers' `generate` with
           `prefix_allowed_tokens_fn` on the same weights, in turns; and how many of their items
           are the same. Nothing is left out, since transformers has no way to.
  request  milliseconds of one served request for one user, the items of the history left out.
  beams    the share of the ten items with the highest log p(ID), by scoring every item, that a beam
           of each width finds.
  legal    all users, 50 beams: how many items were decoded, and how many of them are none of the
           catalogue, come twice in a list, or are in the history.

--parts names some of them. The first needs PyTorch and transformers (`pip install .[parity]`).
"""

import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import timing
from absl import flags
from flax import nnx

from mmesid_jax.config import command_line
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout, Pieces, with_rows_for
from mmesid_jax.errors import UserError
from mmesid_jax.models.generate.decoder import generate_items, score_all_items
from mmesid_jax.models.generate.generated_ranking import GeneratedRanking
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.serving.ranker import Ranker
from mmesid_jax.stages.recommender_stage import load_recommender
from mmesid_jax.stages.workdir import Workdir, reopen_workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A folder with a trained recommender.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "Where the data set is now, if it moved.")
PARTS = flags.DEFINE_list("parts", ["search", "request", "beams", "legal"], "Tables that are made.")
BEAMS = flags.DEFINE_list("beams", ["20", "50"], "Beams of the first two tables.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
USERS = flags.DEFINE_integer("users", 64, "Users of a batch of the first table.", lower_bound=1)
REQUESTS = flags.DEFINE_integer("requests", 300, "Requests of the second table.", lower_bound=1)
COMPARED = flags.DEFINE_integer("compared", 256, "Users of the third table.", lower_bound=1)
flags.mark_flags_as_required(["workdir", "output"])

TOP, WIDTHS, AT_ONCE = 10, (10, 20, 50, 100), 4  # of the third table
MOST_BEAMS, AT_A_TIME = 50, 4096  # of the fourth


def main(argv: list[str]) -> None:
  del argv
  made = {
    "search": search_speed,
    "request": request_times,
    "beams": beam_recall,
    "legal": illegal_items,
  }
  if unknown := set(PARTS.value) - set(made):
    raise UserError(f"--parts: no {unknown.pop()}; expected some of {', '.join(made)}")
  workdir = reopen_workdir(pathlib.Path(WORKDIR.value), DATA.value)
  model = load_recommender(workdir.path, workdir.config)
  if model.generate is None:
    raise UserError(f"--workdir={workdir.path}: its recommender generates nothing (head=rank)")
  figures: dict[str, Any] = {"environment": timing.environment(), "items": model.num_items}
  for part in PARTS.value:
    figures[part] = made[part](workdir, model)
    timing.write(pathlib.Path(OUTPUT.value) / "decoding.json", figures)


def pick_histories(workdir: Workdir, number: int) -> list[np.ndarray]:
  """The newest items that fit into a row, of users that are evenly spread over the data set."""
  c = workdir.config.recommender
  users = np.linspace(0, len(workdir.dataset) - 1, number).astype(int)
  longest = c.row_length - c.prompt.response
  return [np.asarray(workdir.dataset.sequence(user)[-longest:]) for user in users]


def to_batches(workdir: Workdir, histories: list[np.ndarray]) -> list[Batch]:
  """The histories in rows that they about fill, one batch in most cases."""
  c, pieces = workdir.config.recommender, len(histories)
  length_E = np.array([len(h) for h in histories])
  layout = Layout(1, c.row_length, pieces, c.prompt.response)
  need = Pieces(np.arange(pieces), np.zeros(pieces, int), length_E + 1, length_E)
  sequences = [np.append(h, 0) for h in histories]
  return list(batch_sequences(sequences, with_rows_for(layout, need), length_E))


def by_history(batches: list[Batch], answers: Sequence[jax.Array]) -> np.ndarray:
  """Answers [histories, ...], in the order of the histories, of answers [Q, ...] by batch."""
  found = {}
  for batch, answer in zip(batches, jax.device_get(answers), strict=True):
    found |= {e: answer[q] for q, e in enumerate(batch.piece_Q) if batch.weight_Q[q] > 0}
  return np.stack([found[e] for e in range(len(found))])


def search_speed(workdir: Workdir, model: RecommenderModel) -> dict[str, Any]:
  from torch_decoder import TorchDecoder

  histories = pick_histories(workdir, USERS.value)
  ours = nnx.jit(generate_items, static_argnums=2)
  theirs = TorchDecoder(model)
  found = {}
  for beams in map(int, BEAMS.value):
    answers: dict[str, np.ndarray] = {}

    def by_jax(beams=beams, answers=answers):
      batches = to_batches(workdir, histories)
      items = [ours(model, batch, beams).item_QA for batch in batches]
      answers["ours"] = by_history(batches, items)
      return len(histories)

    def by_torch(beams=beams, answers=answers):
      answers["transformers"], _ = theirs.generate(histories, beams)
      return len(histories)

    rates = timing.alternate({"ours": by_jax, "transformers": by_torch}, ROUNDS.value)
    pairs = zip(answers["ours"], answers["transformers"], strict=True)
    same = float(np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs]))
    print(f"\nbeams of {beams}, {len(histories)} users at once; {same:.1%} of the items are found")
    print(f"by both\n{timing.table(rates, 'users', 'ours')}")
    found[beams] = {"rates": rates, "same": same}
  return found


def request_times(workdir: Workdir, model: RecommenderModel) -> dict[str, Any]:
  found = {}
  histories = pick_histories(workdir, REQUESTS.value)
  print("\none user a request, milliseconds      p50        p99")
  for beams in map(int, BEAMS.value):
    served = Ranker(GeneratedRanking(model, beams), workdir.config, workdir.path)
    top_k = min(TOP, beams)
    for history in histories[:20]:  # compiles
      served.top_items([history], top_k)
    milliseconds = []
    for history in histories:
      start = time.perf_counter()
      served.top_items([history], top_k)
      milliseconds.append(1e3 * (time.perf_counter() - start))
    found[beams] = {"p50": statistics.median(milliseconds), "p99": np.quantile(milliseconds, 0.99)}
    print(f"beams of {beams:<24} {found[beams]['p50']:10.2f} {found[beams]['p99']:10.2f}")
  return found


def beam_recall(workdir: Workdir, model: RecommenderModel) -> dict[str, Any]:
  histories = pick_histories(workdir, COMPARED.value)
  exact, search = nnx.jit(score_all_items), nnx.jit(generate_items, static_argnums=2)
  shares: dict[int, list[float]] = {beams: [] for beams in WIDTHS}
  for start in range(0, len(histories), AT_ONCE):
    batches = to_batches(workdir, histories[start : start + AT_ONCE])
    score_EI = by_history(batches, [exact(model, batch) for batch in batches])
    best_EA = np.argsort(-score_EI, axis=1, kind="stable")[:, :TOP]
    for beams in WIDTHS:
      item_EA = by_history(batches, [search(model, b, beams).item_QA for b in batches])
      shares[beams] += [len({*a} & {*b}) / TOP for a, b in zip(best_EA, item_EA, strict=True)]
  found = {beams: float(np.mean(x)) for beams, x in shares.items()}
  print(f"\n{len(histories)} users: the share of the ten best items that a beam finds")
  print("\n".join(f"beams of {beams:<5} {share:8.2%}" for beams, share in found.items()))
  return {"users": len(histories), "recall": found}


def illegal_items(workdir: Workdir, model: RecommenderModel) -> dict[str, int]:
  served = Ranker(GeneratedRanking(model, MOST_BEAMS), workdir.config, workdir.path)
  histories = pick_histories(workdir, len(workdir.dataset))
  shape = served.shape_for(np.array([len(h) for h in histories]))
  counts = dict.fromkeys(("decoded", "outside", "twice", "in_history"), 0)
  for start in range(0, len(histories), AT_A_TIME):
    some = histories[start : start + AT_A_TIME]
    top = served.top_items(some, MOST_BEAMS, shape=shape)
    for history, item_A, score_A in zip(some, top.item_EA, top.score_EA, strict=True):
      items = item_A[np.isfinite(score_A)]
      counts["decoded"] += len(items)
      counts["outside"] += int(((items < 1) | (items > model.num_items)).sum())
      counts["twice"] += len(items) - len({*items})
      counts["in_history"] += int(np.isin(items, history).sum())
  print(
    f"\n{len(histories):,} users, {MOST_BEAMS} beams: "
    + ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
  )
  return counts


if __name__ == "__main__":
  command_line.run_command(main)
