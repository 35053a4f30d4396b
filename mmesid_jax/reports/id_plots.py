"""Pictures of semantic IDs. matplotlib is imported when one is made."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmesid_jax.display.plots import COLORS, GREY, Picture, draw_line, render_png, use_whole_ticks
from mmesid_jax.evaluation.geometry import Plane

POINTS = 5_000  # in the picture of a plane; a random sample of more items
COLORED = 8  # most frequent first codes that have a color; the others are grey
FLOOR = 1e-7  # smallest singular value shown, relative to the largest: below is float32 noise
SHADES = ("#a8dbe8", "#1b5e9e", "#071a33")


def make_pictures(
  figures: Mapping[str, Any], planes: Mapping[str, tuple[Plane, np.ndarray]]
) -> list[Picture]:
  """All pictures for the figures of `id_report`. planes: modality -> plane and first code of the
  items."""
  pictures = []
  for m, counts in figures["count_LC"].items():
    count_LC = np.array(counts)
    plane, first_E = planes[m]
    pictures += [
      Picture(
        f"{m}: number of items with each code",
        usage_squares(count_LC),
        "Each small square is a code, sorted by its number of items; darker means more items, grey "
        "means none. Good: no grey squares, and no few dark squares with most of the items.",
      ),
      Picture(
        f"{m}: number of items with each code, sorted",
        sorted_counts(count_LC),
        "Good: lines close to the dotted one, where all codes have the same number of items. Where "
        "a line ends, the unused codes begin.",
      ),
      Picture(
        f"{m}: items at the sums of their code vectors",
        item_scatter(plane, first_E),
        f"The two principal components ({plane.share:.0%} of the variance); the {COLORED} most "
        "frequent first codes have a color. Good: many different points, and a region for every "
        "color.",
      ),
    ]
  pictures += [
    Picture(
      "What is left of the encoded vectors after each level",
      residual_lines(figures["residual_norm"]),
      "|residual| / |encoded vector|, mean over the items. Good: each level leaves clearly less "
      "than the level before. Where a line is flat, a level adds nothing.",
    ),
    Picture(
      "Singular values of the vectors that make up the item tokens, relative to the largest",
      spectrum_lines(figures["inputs"]),
      "Good: lines that fall slowly and reach the right end. A line that drops early means that "
      "the space has collapsed.",
    ),
  ]
  return pictures


def usage_squares(count_LC: np.ndarray) -> bytes:
  """A panel for each level with a square for each code; darker = more items, log scale."""
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
      square = np.ones((rows * side, 4))  # white after the last code
      square[:codes] = shades(norm(np.maximum(sorted_C, 1)))
      square[:codes][sorted_C == 0] = colors.to_rgba(GREY)
      axis.imshow(square.reshape(rows, side, 4), interpolation="nearest")
      axis.set(
        xticks=[], yticks=[], title=f"level {level}: {(count_C > 0).sum():,} of {codes:,} in use"
      )
      axis.spines[:].set_visible(False)
    figure.colorbar(cm.ScalarMappable(norm, shades), ax=axes, label="items", shrink=0.8)

  return render_png(draw, height=11 / (levels + 1) + 0.4)


def sorted_counts(count_LC: np.ndarray) -> bytes:
  """A line for each level: the number of items of its codes, largest first, on a log scale."""

  def draw(figure) -> None:
    axis = figure.subplots()
    place_C = np.arange(1, count_LC.shape[1] + 1)
    for level, count_C in enumerate(count_LC, 1):
      sorted_C = np.sort(count_C)[::-1].astype(float)
      sorted_C[sorted_C == 0] = np.nan
      draw_line(axis, level - 1, place_C, sorted_C, f"level {level}")
    even = count_LC[0].sum() / count_LC.shape[1]
    axis.axhline(even, color="black", linestyle=":", linewidth=1, label="all equal")
    axis.set(yscale="log", xlabel="codes, most frequent first", ylabel="items")
    axis.set_xlim(0, count_LC.shape[1] + 1)
    use_whole_ticks(axis)
    figure.legend(loc="outside right upper")

  return render_png(draw, height=2.8)


def item_scatter(plane: Plane, first_E: np.ndarray) -> bytes:
  """The items in the plane, colored by their first code."""

  def draw(figure) -> None:
    axis = figure.subplots()
    shown_E = np.random.default_rng(0).permutation(len(first_E))[:POINTS]
    place_E2, code_E = plane.place_E2[shown_E], first_E[shown_E]
    most_used = np.argsort(-np.bincount(first_E), kind="stable")[:COLORED]
    other_E = ~np.isin(code_E, most_used)
    for code, color in zip(most_used, COLORS, strict=False):
      points = place_E2[code_E == code]
      share = (first_E == code).mean()
      label = f"code {code}: {share:.1%}"
      axis.scatter(*points.T, s=7, color=color, linewidths=0, alpha=0.7, label=label)
    if other_E.any():  # last in the legend, under the others in the picture
      options = {"color": GREY, "linewidths": 0, "label": "others", "zorder": 0.9}
      axis.scatter(*place_E2[other_E].T, s=7, **options)
    axis.set(xlabel="first component", ylabel="second component")
    figure.legend(loc="outside right upper", markerscale=2)

  return render_png(draw, height=4.2)


def residual_lines(norms: Mapping[str, Sequence[float]]) -> bytes:
  """A line for each modality, from 1 at level 0."""

  def draw(figure) -> None:
    axis = figure.subplots()
    for n, (modality, left) in enumerate(norms.items()):
      draw_line(axis, n, range(len(left)), left, modality, marker="o", markersize=4)
    axis.set(xlabel="levels", ylabel="share left", ylim=(0, None))
    axis.set_xticks(range(max(map(len, norms.values()))))
    figure.legend(loc="outside right upper")

  return render_png(draw, height=2.8)


def spectrum_lines(inputs: Mapping[str, Mapping[str, Mapping]]) -> bytes:
  """A panel before and one after training, with a line for each part of the item token."""

  def draw(figure) -> None:
    axes = figure.subplots(1, len(inputs), squeeze=False, sharey=True)[0]
    for axis, (when, parts) in zip(axes, inputs.items(), strict=True):
      for n, (part, one) in enumerate(parts.items()):
        value_W = np.array(one["spectrum"]) / max(one["spectrum"][0], 1e-300)
        value_W[value_W < FLOOR] = np.nan
        label = part if axis is axes[0] else None
        draw_line(axis, n, np.arange(1, len(value_W) + 1), value_W, label)
      axis.set(yscale="log", xlabel="direction", title=f"{when} training")
    axes[0].set_ylabel("singular value")
    figure.legend(loc="outside right upper")

  return render_png(draw, height=3.4)
