"""Pictures as PNG files in memory. matplotlib is imported when one is made."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

COLORS = ("#1b5e9e", "#c4501b", "#3a7d44", "#7b4fa3", "#b08900", "#3f97a5", "#b4446c", "#54432d")
GREY = "#d4d4d4"
STYLE = {
  **{"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False},
  **{
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
  },
}
BINS = 40  # a histogram has about as many at most


class Picture(NamedTuple):
  """A PNG file, its title, and a sentence that says how to read it."""

  title: str
  png: bytes
  good: str


def draw_line(axis, number: int, x, y, label: str | None, **style: Any) -> None:
  """Draws line `number` of a picture in its own color, dashed where colors repeat."""
  color, dashes = COLORS[number % len(COLORS)], ("-", "--", ":")[number // len(COLORS) % 3]
  label = label and _escape(label)
  axis.plot(x, y, color=color, linestyle=dashes, linewidth=1.5, label=label, **style)


def _escape(text: str) -> str:
  """A label that matplotlib shows as `text`: $ starts no formula, _ hides nothing in a legend."""
  return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def draw_histogram(axis, count_E: np.ndarray, *, xlabel: str, ylabel: str) -> None:
  """Draws how often each whole number from 1 on occurs.

  Every bar is as wide as the numbers it holds. A bar that holds several shows their mean, so that
  bars of different width compare; both axes are logarithmic then.
  """
  edge_E = whole_number_bins(int(count_E.max()))
  widths = np.diff(edge_E)
  heights = np.histogram(count_E, edge_E)[0] / widths
  axis.stairs(heights, edge_E, fill=True, color=COLORS[0])
  if widths.max() > 1:
    axis.set(xscale="log", yscale="log", xlim=(count_E.min() - 0.5, edge_E[-1]))
    axis.xaxis.set_major_formatter("{x:g}")
    ylabel += " per number"
  else:
    use_whole_ticks(axis)
  axis.set(xlabel=xlabel, ylabel=ylabel)


def whole_number_bins(largest: int) -> np.ndarray:
  """Edges between the whole numbers 1 .. largest: 0.5, 1.5, ... for up to BINS numbers.

  For more numbers the bins get wider, so that they look alike on a logarithmic axis.
  """
  growth = 0.0 if largest <= BINS else np.log(largest) / BINS
  firsts, width = [1], 1
  while firsts[-1] + 2 * width <= largest + 1:  # so that the last bin is not the narrower one
    firsts.append(firsts[-1] + width)
    width = max(width, int(firsts[-1] * growth))
  return np.array([*firsts, largest + 1]) - 0.5


def use_whole_ticks(axis) -> None:
  """Puts ticks of the x axis at whole numbers only."""
  from matplotlib.ticker import MaxNLocator

  axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def render_png(draw: Callable[[Any], None], *, height: float) -> bytes:
  """The PNG file of a figure 10 inches wide that `draw` fills; opens no window, keeps no state."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10, height), layout="constrained")
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
  return file.getvalue()
