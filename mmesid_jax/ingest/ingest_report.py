"""What a prepared dataset holds, to be read: a few lines for the terminal, a page with pictures."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.display.html import html_figure, html_page, html_table, small_text
from mmesid_jax.display.plots import COLORS, Picture, draw_histogram, draw_line, render_png
from mmesid_jax.ingest.events import Events

COUNTED = ("users", "items", "events")


def report_text(output: Path, figures: Mapping[str, Any]) -> str:
  """Counts after every step, as a table."""
  header = ("", *COUNTED)
  rows = [(name, *(f"{c[k]:,}" for k in COUNTED)) for name, c in figures["steps"].items()]
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  lines = [
    f"{name:<{widths[0]}}  "
    + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
    for name, *cells in (header, *rows)
  ]
  return "\n".join([*lines, *_notes(figures), f"{output}: read {output / 'report.html'}"])


def _notes(figures: Mapping[str, Any]) -> Iterator[str]:
  bad, dataset = figures["bad lines"], figures["dataset"]
  if bad["count"]:
    yield f"{bad['count']:,} bad lines left out, first of all {'; '.join(bad['first'])}"
  yield (
    f"{dataset['items described']:,} of {dataset['items']:,} items are described, "
    f"{dataset['items with title']:,} have a title, {dataset['items with image']:,} an image"
  )
  if again := figures["items described more than once"]:
    yield f"{again:,} descriptions of items described before are left out: the first one counts"
  if dataset["evaluated users"] < dataset["users"]:
    few = dataset["users"] - dataset["evaluated users"]
    yield f"{few:,} users have fewer than 3 events: they only train"


def report_page(name: str, figures: Mapping[str, Any], events: Events) -> str:
  """The page of the dataset `name`: figures as in its statistics.json, and its events."""
  dataset = figures["dataset"]
  steps = [[name, *(f"{c[k]:,}" for k in COUNTED)] for name, c in figures["steps"].items()]
  spreads = {"events of a user": dataset["length"], "events of an item": dataset["popularity"]}
  quantiles = list(dataset["length"])
  parts = [
    *(f'<p class="note">{escape(note)}</p>' for note in _notes(figures)),
    "<h2>What every step left</h2>",
    html_table(["", *COUNTED], steps),
    "<h2>Lengths and popularity</h2>",
    html_table(["", *quantiles], [[name, *spread.values()] for name, spread in spreads.items()]),
    small_text("Shares of users, or items, that have at most so many events."),
    *map(html_figure, _pictures(events)),
    "<h2>Figures</h2>",
    f"<pre>{escape(json.dumps(dataset, indent=1))}</pre>",
    "<h2>Settings</h2>",
    f"<pre>{escape(json.dumps(figures['settings'], indent=1))}</pre>",
  ]
  return html_page(f"Dataset {name}", parts)


def _pictures(events: Events) -> Iterator[Picture]:
  yield Picture(
    "Users by their number of events",
    render_png(lambda figure: _users_by_events(figure, events), height=2.8),
    "Good: the bulk well above the shortest length; what a row holds should be near the right end.",
  )
  yield Picture(
    "Events of every item, most popular first",
    _popularity(np.bincount(events.item_E)),
    "A straight line is usual: few items have most events. The steeper, the more a list of what is "
    "popular gets right, so compare with it.",
  )
  if events.time_E is not None:
    yield Picture(
      "Events over time",
      _over_time(events.time_E),
      "Good: no gap and no pile-up at one date, which would be a default that some program wrote.",
    )


def _users_by_events(figure, events: Events) -> None:
  events_U = np.bincount(events.user_E)
  draw_histogram(figure.subplots(), events_U, xlabel="events of a user", ylabel="users")


def _popularity(count_I: np.ndarray) -> bytes:
  sorted_I = np.sort(count_I)[::-1]
  shown = np.unique(np.geomspace(1, len(sorted_I), 2_000).astype(int))

  def draw(figure) -> None:
    axis = figure.subplots()
    draw_line(axis, 0, shown, sorted_I[shown - 1], None)
    axis.set(xscale="log", yscale="log", xlabel="items, most popular first", ylabel="events")

  return render_png(draw, height=2.8)


def _over_time(time_E: np.ndarray) -> bytes:
  # what matplotlib can write as dates; a program's "no time" may be the year 1
  inside = np.clip(time_E, *np.array(["1000", "9000"], "datetime64[s]").astype(np.int64))
  first, last = int(inside.min()), int(inside.max())
  edges = np.linspace(first, max(last, first + 1), 101)

  def draw(figure) -> None:
    axis = figure.subplots()
    heights, _ = np.histogram(inside, edges)
    axis.stairs(heights, edges.astype("datetime64[s]"), fill=True, color=COLORS[0])
    axis.set(ylabel="events")

  return render_png(draw, height=2.4)
