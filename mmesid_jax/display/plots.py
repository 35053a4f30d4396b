"""Pictures as PNG files in memory. matplotlib is imported when one is drawn."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

COLOURS = ("#1b5e9e", "#c4501b", "#3a7d44", "#7b4fa3", "#b08900", "#3f97a5", "#b4446c", "#54432d")
GREY = "#d4d4d4"
STYLE = {
  **{"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False},
  **{"axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6, "legend.frameon": False},
}


class Picture(NamedTuple):
  """A PNG file, what it shows, and a sentence on what good looks like."""

  title: str
  png: bytes
  good: str


def line(axis, number: int, x, y, label: str | None, **style: Any) -> None:
  """A line of its own colour, with dashes where colours repeat."""
  colour, dashes = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
  label = label and _plain(label)
  axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.5, label=label, **style)


def _plain(text: str) -> str:
  """What matplotlib shows as `text`: no formulas between dollars, no label left out of a legend."""
  return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def png(draw: Callable[[Any], None], *, height: float) -> bytes:
  """What `draw` puts into a figure 10 inches wide; no window is opened, no state kept."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10, height), layout="constrained")
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
  return file.getvalue()
