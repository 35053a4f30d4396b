"""Reports on a prepared dataset: a few lines for the terminal, and a page with pictures."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.data.repeats import Repeats, describe_repeats
from mmesid_jax.display.html import html_figure, html_page, html_table, small_text
from mmesid_jax.display.plots import COLORS, Picture, draw_histogram, draw_line, render_png
from mmesid_jax.display.table import format_table
from mmesid_jax.ingest.events import Events
from mmesid_jax.ingest.statistics import REPEATED_USERS, TIED_USERS, TIES

COUNTED = ("users", "items", "events")


def report_text(output: Path, figures: Mapping[str, Any]) -> str:
  """Formats the counts after every filter as a table, followed by notes.

  figures: as in the file statistics.json.
  """
  table = format_table(("after the step", *COUNTED), _count_rows(figures))
  end = f"wrote {output}; for details open {output / 'report.html'}"
  return "\n".join([table, *_notes(figures), end])


def _count_rows(figures: Mapping[str, Any]) -> list[list[str]]:
  return [
    [step, *(f"{counts[name]:,}" for name in COUNTED)] for step, counts in figures["steps"].items()
  ]


def _notes(figures: Mapping[str, Any]) -> Iterator[str]:
  bad, dataset = figures["bad lines"], figures["dataset"]
  yield from figures["advice"]
  if formats := figures["formats"]:
    read = ", ".join(f"{Path(file).name} as {name}" for file, name in formats.items())
    yield f"Files were read in these formats: {read}."
  if bad["count"]:
    yield f"{bad['count']:,} bad lines were left out; the first are {'; '.join(bad['first'])}"
  if (rows := figures["rows that span several lines"])["count"]:
    yield (
      f"{rows['count']:,} rows of CSV span several lines, the first {rows['first']}; if quotation "
      "marks are parts of texts there, they need --config.quoting=none."
    )
  yield (
    f"Of {dataset['items']:,} items, {dataset['items described']:,} have a description: "
    f"{dataset['items with title']:,} a title, {dataset['items with image']:,} an image."
  )
  if duplicates := figures["items described more than once"]:
    yield f"{duplicates:,} repeated descriptions of items were left out; the first one counts."
  if few := dataset["users"] - dataset["evaluated users"]:
    yield f"Users with fewer than 3 events, which train but are not evaluated: {few:,}."
  evaluated = dataset["evaluated users"]
  repeats = {part: Repeats(evaluated, dataset[key]) for part, key in REPEATED_USERS.items()}
  if note := describe_repeats(repeats):
    yield f"{note}."
  yield from _tie_notes(figures)


def _tie_notes(figures: Mapping[str, Any]) -> Iterator[str]:
  dataset = figures["dataset"]
  if not dataset.get(TIES):
    return
  test, validation = (dataset[TIED_USERS[name]] for name in ("test", "validation"))
  order = "that of the files, which may give the next item away; --config.ties=hash breaks them"
  if figures["settings"]["ties"] == "hash":
    order = "that of a hash"
  yield (
    f"{dataset[TIES]:,} events are at the same time as the user's event before; of "
    f"{dataset['evaluated users']:,} evaluated users, this is so for the test item of {test:,} and "
    f"the validation item of {validation:,}. Their order is {order}."
  )


def report_page(name: str, figures: Mapping[str, Any], events: Events) -> str:
  """Makes the HTML page of the dataset `name`.

  Args:
    figures: as in the file statistics.json.
    events: those of the dataset, sorted.
  """
  dataset = figures["dataset"]
  spreads = {"events per user": dataset["length"], "events per item": dataset["popularity"]}
  quantiles = list(dataset["length"])
  parts = [
    *(f'<p class="note">{escape(note)}</p>' for note in _notes(figures)),
    "<h2>Counts after every step</h2>",
    html_table(["after the step", *COUNTED], _count_rows(figures)),
    "<h2>Events per user and per item</h2>",
    html_table(["", *quantiles], [[name, *spread.values()] for name, spread in spreads.items()]),
    small_text(
      "The columns with % are quantiles: 75% of the users, or items, have at most the number of "
      "events in the column 75%. 0% is the minimum and 100% the maximum."
    ),
    *map(html_figure, _pictures(events)),
    "<h2>Figures</h2>",
    f"<pre>{escape(json.dumps(dataset, indent=1))}</pre>",
    "<h2>Settings</h2>",
    f"<pre>{escape(json.dumps(figures['settings'], indent=1))}</pre>",
  ]
  return html_page(f"Dataset {name}", parts)


def _pictures(events: Events) -> Iterator[Picture]:
  yield Picture(
    "Number of events per user",
    _draw_lengths(np.bincount(events.user_E)),
    "Good: most users have clearly more events than the minimum. A row should be long enough for "
    "the history of nearly all users.",
  )
  yield Picture(
    "Number of events per item, from the most to the least popular",
    _draw_popularity(np.bincount(events.item_E)),
    "A straight line is usual: a few items have most of the events. The steeper the line, the "
    "better a list of popular items predicts, so compare your model with such a list.",
  )
  if events.time_E is not None:
    yield Picture(
      "Events over time",
      _draw_times(events.time_E),
      "Good: no gaps, and no peak at a single date. Such a peak is often a default value that a "
      "program wrote in place of an unknown date.",
    )


def _draw_lengths(count_U: np.ndarray) -> bytes:
  def draw(figure) -> None:
    draw_histogram(figure.subplots(), count_U, xlabel="events per user", ylabel="users")

  return render_png(draw, height=2.8)


def _draw_popularity(count_I: np.ndarray) -> bytes:
  sorted_I = np.sort(count_I)[::-1]
  shown = np.unique(np.geomspace(1, len(sorted_I), 2_000).astype(int))

  def draw(figure) -> None:
    axis = figure.subplots()
    draw_line(axis, 0, shown, sorted_I[shown - 1], None)
    axis.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="events")

  return render_png(draw, height=2.8)


def _draw_times(time_E: np.ndarray) -> bytes:
  # the years that matplotlib can draw; a program may write the year 1 for an unknown time
  clipped_E = np.clip(time_E, *np.array(["1000", "9000"], "datetime64[s]").astype(np.int64))
  first, last = int(clipped_E.min()), int(clipped_E.max())
  edges = np.linspace(first, max(last, first + 1), 101)

  def draw(figure) -> None:
    axis = figure.subplots()
    heights, _ = np.histogram(clipped_E, edges)
    axis.stairs(heights, edges.astype("datetime64[s]"), fill=True, color=COLORS[0])
    axis.set(ylabel="events")

  return render_png(draw, height=2.4)
