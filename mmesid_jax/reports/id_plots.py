"""Pictures of semantic IDs. matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmesid_jax.display.plots import COLOURS, GREY, Picture, line, png
from mmesid_jax.evaluation.geometry import Plane

POINTS = 5_000  # of a plane, drawn at random from more items
COLOURED = 8  # most frequent first codes, a colour each; the others are grey
FLOOR = 1e-7  # of singular values relative to the largest: float32 tells nothing below
SHADES = ("#a8dbe8", "#1b5e9e", "#071a33")


def of(figures: Mapping[str, Any], planes: Mapping[str, tuple[Plane, np.ndarray]]) -> list[Picture]:
  """All pictures of stages.id_report's figures. planes: modality -> plane and first code of the
  items."""
  pictures = []
  for m, counts in figures["count_LC"].items():
    count_LC = np.array(counts)
    plane, first_E = planes[m]
    pictures += [
      Picture(
        f"{m}: items of every code, most used first",
        usage(count_LC),
        "Good: no grey square, which is a dead code, and no few dark ones that hold most items.",
      ),
      Picture(
        f"{m}: sorted counts",
        histogram(count_LC),
        "Good: a line along the dotted one, where all codes have as many items; "
        "where a line ends, dead codes begin.",
      ),
      Picture(
        f"{m}: sums of code vectors in their principal plane ({plane.share:.0%} of the variance), "
        f"the {COLOURED} most used first codes coloured",
        scatter(plane, first_E),
        "Good: many points, not a few that hold all items, and a region for every colour.",
      ),
    ]
  pictures += [
    Picture(
      "What every level leaves: |residual| / |encoded vector|, mean over the items",
      residuals(figures["residual_norm"]),
      "Good: every level leaves clearly less than the one before; a flat piece is a level that "
      "adds nothing.",
    ),
    Picture(
      "Singular values of the item inputs, relative to the largest",
      spectra(figures["inputs"]),
      "Good: lines that fall slowly and reach the right edge; a line that drops early is a "
      "collapsed space.",
    ),
  ]
  return pictures


def usage(count_LC: np.ndarray) -> bytes:
  """A square a code, a panel a level; darker = more items, on a logarithmic scale."""
  levels, codes = count_LC.shape
  side = int(np.ceil(codes**0.5))
  rows = -(-codes // side)

  def draw(figure) -> None:
    from matplotlib import cm, colors

    shades = colors.LinearSegmentedColormap.from_list("items", SHADES)
    norm = colors.LogNorm(1, max(count_LC.max(), 2))
    axes = figure.subplots(1, levels, squeeze=False)[0]
    for level, (axis, count_C) in enumerate(zip(axes, count_LC, strict=True), 1):
      sorted_C = np.sort(count_C)[::-1]
      square = np.ones((rows * side, 4))  # white behind the last code
      square[:codes] = shades(norm(np.maximum(sorted_C, 1)))
      square[:codes][sorted_C == 0] = colors.to_rgba(GREY)
      axis.imshow(square.reshape(rows, side, 4), interpolation="nearest")
      axis.set(xticks=[], yticks=[], title=f"level {level}: {(count_C > 0).sum():,} of {codes:,}")
      axis.spines[:].set_visible(False)
    figure.colorbar(cm.ScalarMappable(norm, shades), ax=axes, label="items", shrink=0.8)

  return png(draw, height=11 / (levels + 1) + 0.4)


def histogram(count_LC: np.ndarray) -> bytes:
  """The counts of every level's codes, largest first, on a logarithmic scale."""

  def draw(figure) -> None:
    axis = figure.subplots()
    place_C = np.arange(1, count_LC.shape[1] + 1)
    for level, count_C in enumerate(count_LC, 1):
      sorted_C = np.sort(count_C)[::-1].astype(float)
      sorted_C[sorted_C == 0] = np.nan
      line(axis, level - 1, place_C, sorted_C, f"level {level}")
    even = count_LC[0].sum() / count_LC.shape[1]
    axis.axhline(even, color="black", linestyle=":", linewidth=1, label="even")
    axis.set(yscale="log", xlabel="codes, most used first", ylabel="items")
    axis.set_xlim(0, count_LC.shape[1] + 1)
    figure.legend(loc="outside right upper")

  return png(draw, height=2.8)


def scatter(plane: Plane, first_E: np.ndarray) -> bytes:
  """The items in the plane, coloured by the first code."""

  def draw(figure) -> None:
    axis = figure.subplots()
    shown_E = np.random.default_rng(0).permutation(len(first_E))[:POINTS]
    place_E2, code_E = plane.place_E2[shown_E], first_E[shown_E]
    most_used = np.argsort(-np.bincount(first_E), kind="stable")[:COLOURED]
    other_E = ~np.isin(code_E, most_used)
    for code, colour in zip(most_used, COLOURS, strict=False):
      points = place_E2[code_E == code]
      share = (first_E == code).mean()
      label = f"code {code}: {share:.1%}"
      axis.scatter(*points.T, s=7, color=colour, linewidths=0, alpha=0.7, label=label)
    if other_E.any():  # last in the legend, behind the others in the picture
      options = {"color": GREY, "linewidths": 0, "label": "others", "zorder": 0.9}
      axis.scatter(*place_E2[other_E].T, s=7, **options)
    axis.set(xlabel="first direction", ylabel="second direction")
    figure.legend(loc="outside right upper", markerscale=2)

  return png(draw, height=4.2)


def residuals(norms: Mapping[str, Sequence[float]]) -> bytes:
  """A line a modality, from 1 at level 0 on."""

  def draw(figure) -> None:
    axis = figure.subplots()
    for n, (modality, left) in enumerate(norms.items()):
      line(axis, n, range(len(left)), left, modality, marker="o", markersize=4)
    axis.set(xlabel="levels", ylabel="left", ylim=(0, None))
    axis.set_xticks(range(max(map(len, norms.values()))))
    figure.legend(loc="outside right upper")

  return png(draw, height=2.8)


def spectra(inputs: Mapping[str, Mapping[str, Mapping]]) -> bytes:
  """A panel before and one after training, a line a part of the item token."""

  def draw(figure) -> None:
    axes = figure.subplots(1, len(inputs), squeeze=False, sharey=True)[0]
    for axis, (when, parts) in zip(axes, inputs.items(), strict=True):
      for n, (part, one) in enumerate(parts.items()):
        value_W = np.array(one["spectrum"]) / max(one["spectrum"][0], 1e-300)
        value_W[value_W < FLOOR] = np.nan
        label = part if axis is axes[0] else None
        line(axis, n, np.arange(1, len(value_W) + 1), value_W, label)
      axis.set(yscale="log", xlabel="direction", title=f"{when} training")
    axes[0].set_ylabel("singular value")
    figure.legend(loc="outside right upper")

  return png(draw, height=3.4)
