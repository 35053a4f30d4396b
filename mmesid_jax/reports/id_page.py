"""The semantic-ID page: one HTML file without links, with verdict, tables and pictures."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mmesid_jax.display.html import html_figure, html_page, html_table, small_text
from mmesid_jax.display.plots import Picture
from mmesid_jax.reports.id_verdict import COLLISIONS, TAU, USED, Finding, find_verdict


def semantic_id_page(name: str, figures: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
  """The page of the workdir `name`: HTML, from the figures of `id_report` and their pictures."""
  modalities = ", ".join(figures["tau"])
  parts = [
    f"<p>{figures['num_items']:,} items; modalities: {escape(modalities)}.</p>",
    "<h2>Verdict</h2>",
    *_verdict(find_verdict(figures)),
    *(f'<p class="note">{escape(note)}</p>' for note in figures["notes"]),
    "<h2>Codebooks</h2>",
    *_health(figures["health"]),
    "<h2>Geometry</h2>",
    *_geometry(figures["tau"], figures["inputs"]),
    "<h2>Pictures</h2>",
    *map(html_figure, pictures),
  ]
  return html_page(f"Semantic IDs of {name}", parts)


def _verdict(findings: Sequence[Finding]) -> Iterable[str]:
  for finding in findings:
    yield (
      f'<p><strong>{escape(finding.question)} <span class="{finding.answer}">'
      f"{finding.answer.capitalize()}.</span></strong> {escape(finding.text)}</p>"
    )
  yield small_text(
    "Yes and partly, by rules of thumb: the worst level uses at least "
    f"{USED[0]:.0%} and {USED[1]:.0%} of its codes; at most {COLLISIONS[0]:.0%} and "
    f"{COLLISIONS[1]:.0%} of the IDs are lost to collisions; tau is at least {TAU[0]} and "
    f"{TAU[1]}. Good codes do not guarantee good recommendations: compare the test metrics too."
  )


def _health(health: Mapping[str, Mapping]) -> Iterable[str]:
  modalities = {m: figures for m, figures in health.items() if "levels" in figures}
  largest = [f["largest_category"] for f in modalities.values() if "largest_category" in f]
  header = ["modality", "level", "codes in use", "unused codes", "perplexity", "Gini"]
  header.append("entropy (bits)")
  rows = []
  for m, figures in modalities.items():
    for l, level in enumerate(figures["levels"]):  # noqa: E741
      row = [m if not l else "", l + 1, f"{level['usage']:.1%}", level["dead"]]
      row += [f"{level['perplexity']:.1f}", f"{level['gini']:.2f}", f"{figures['entropy'][l]:.2f}"]
      if largest:
        row += [f"{figures['purity'][l]:.1%}", f"{figures['purity_by_chance'][l]:.1%}"]
      rows.append(row)
  yield html_table(header + (["purity", "purity by chance"] if largest else []), rows)
  yield small_text(
    "Perplexity: the number of codes that would be as informative if all were used equally often; "
    "higher is better. Gini: 0 if all codes have the same number of items, near 1 if a few codes "
    "have nearly all items. Entropy and purity: for the codes from the first level to this one."
  )
  if largest:
    yield small_text(
      "Purity: group the items by their codes; the share of items that have the most frequent "
      "category of their group. Small groups are pure whatever the codes mean, so compare with "
      "purity by chance: the same groups, filled with items at random. The most frequent category "
      f"has {largest[0]:.1%} of all items."
    )
  rows = [[m, f"{f['collision_rate']:.2%}", f"{f['largest_group']:,}"] for m, f in health.items()]
  yield html_table(["ID", "collision rate", "items of the most shared ID"], rows)
  yield small_text(
    "Collision rate: 1 - number of different IDs / number of items. Joint: the codes of all "
    "modalities together, which are an item's full ID."
  )


def _geometry(tau: Mapping[str, Mapping], inputs: Mapping[str, Mapping]) -> Iterable[str]:
  whens = ("before", "after")
  rows = []
  for m, columns in tau.items():
    row = [f"{columns[c]['mean']:.4f}" if c in columns else "-" for c in ("quantized", *whens)]
    ties = f"{columns['quantized']['ties']:.1%}" if "quantized" in columns else "-"
    rows.append([m, *row, ties])
  titles = ["quantized", "before training", "after training", "tied pairs"]
  yield html_table(["Kendall's tau to the features", *titles], rows)
  users = max((c["users"] for columns in tau.values() for c in columns.values()), default=0)
  yield small_text(
    "Take a user's test item and sort the items of the history by their distance to it, once by "
    "features and once by codes (an item's code vectors, summed). Tau compares the two orders: 1 "
    f"if they are equal, 0 if they are unrelated. Mean over {users:,} users. Quantized: the codes "
    "of semantic_ids.safetensors. Before and after training: the code tables of the recommender; a "
    "fall from before to after means that training forgets the features. Tied pairs: pairs of "
    "items with equal distance, for example with the same ID."
  )
  rows = []
  for part, one in inputs["before"].items():
    ranks = [inputs[w][part]["effective_rank"] if w in inputs else None for w in whens]
    rows.append([part, one["width"], *("-" if rank is None else f"{rank:.1f}" for rank in ranks)])
  yield html_table(["Effective rank", "width", "before training", "after training"], rows)
  yield small_text(
    "Effective rank: how many directions of the space the vectors fill, at most the width; the "
    "exponential of the entropy of the singular values. A rank far below the width means that the "
    "space has collapsed. Item token: what the backbone reads, including what was learned for "
    "every item."
  )
