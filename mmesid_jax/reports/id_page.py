"""The page of stages.id_report: one HTML file that needs no other, tables first, then pictures."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mmesid_jax.display.html import document, figure, small, table
from mmesid_jax.display.plots import Picture


def page(name: str, figures: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
  """The page of the workdir `name`: figures as stages.id_report makes them, and their pictures."""
  parts = [
    f"<p>{figures['num_items']:,} items; modalities: {escape(', '.join(figures['tau']))}.</p>",
    *(f'<p class="note">{escape(note)}</p>' for note in figures["notes"]),
    "<h2>Codebooks</h2>",
    *_health(figures["health"]),
    "<h2>Geometry</h2>",
    *_geometry(figures["tau"], figures["inputs"]),
    "<h2>Pictures</h2>",
    *map(figure, pictures),
  ]
  return document(f"Semantic IDs of {name}", parts)


def _health(health: Mapping[str, Mapping]) -> Iterable[str]:
  modalities = {m: found for m, found in health.items() if "levels" in found}
  largest = [f["largest_category"] for f in modalities.values() if "largest_category" in f]
  header = ["codes", "level", "used", "dead", "perplexity", "Gini", "entropy, bits"]
  rows = []
  for m, found in modalities.items():
    for l, level in enumerate(found["levels"]):  # noqa: E741
      row = [m if not l else "", l + 1, f"{level['usage']:.1%}", level["dead"]]
      row += [f"{level['perplexity']:.1f}", f"{level['gini']:.2f}", f"{found['entropy'][l]:.2f}"]
      if largest:
        row += [f"{found['purity'][l]:.1%}", f"{found['purity_by_chance'][l]:.1%}"]
      rows.append(row)
  yield table(header + (["purity", "by chance"] if largest else []), rows)
  yield small(
    "Perplexity: as many codes, used alike, would tell as much. Gini: 0 when all codes have as "
    "many items, near 1 when few have all. Entropy and purity are those of the codes from the "
    "first level to this one."
  )
  if largest:
    yield small(
      "Purity: the share of items whose category is the commonest among the items with the same "
      "codes. Small groups are pure whatever they mean, so what the same groups have when items "
      "fall into them at random stands beside it. The commonest category has "
      f"{largest[0]:.1%} of the items."
    )
  rows = [[m, f"{f['collision_rate']:.2%}", f"{f['largest_group']:,}"] for m, f in health.items()]
  yield table(["IDs", "collisions", "items of the most shared ID"], rows)
  yield small("Collisions: 1 - distinct IDs / items. Joint: the codes of all modalities together.")


def _geometry(tau: Mapping[str, Mapping], inputs: Mapping[str, Mapping]) -> Iterable[str]:
  whens = ("before", "after")
  rows = []
  for m, found in tau.items():
    row = [f"{found[c]['mean']:.4f}" if c in found else "-" for c in ("quantised", *whens)]
    ties = [f"{found[c]['ties']:.1%}" if c in found else "-" for c in ("quantised",)]
    rows.append([m, *row, *ties])
  columns = ["quantised", "before training", "after training", "tied pairs"]
  yield table(["Kendall's tau to the features", *columns], rows)
  users = max((c["users"] for found in tau.values() for c in found.values()), default=0)
  yield small(
    "How far the sums of code vectors keep the order in which the items of a history are near to "
    f"the test item, mean over {users:,} users: 1 all pairs alike, 0 as by chance. Quantised: of "
    "semantic_ids.safetensors; before and after training: of the recommender's code tables. What "
    "falls from before to after is forgotten. Tied pairs: at the same distance, as items of one "
    "ID are."
  )
  rows = []
  for part, one in inputs["before"].items():
    ranks = [inputs[w][part]["effective_rank"] if w in inputs else None for w in whens]
    rows.append([part, one["width"], *("-" if rank is None else f"{rank:.1f}" for rank in ranks)])
  yield table(["Effective rank", "width", "before training", "after training"], rows)
  yield small(
    "exp of the entropy of the singular values: how many directions are filled alike. A rank far "
    "below the width is a collapse. Item token: what the backbone reads, with what was learned of "
    "every item."
  )
