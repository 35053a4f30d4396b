"""Bins of whole numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.display.plots import BINS, draw_histogram, whole_number_bins


@given(largest=st.integers(1, 100_000))
def test_every_bin_holds_whole_numbers_and_is_no_narrower_than_the_last_one(largest):
  edges = whole_number_bins(largest)
  assert (edges % 1 == 0.5).all()
  assert edges[0] == 0.5 and edges[-1] == largest + 0.5
  widths = np.diff(edges)
  assert (np.diff(widths) >= 0).all()
  assert len(widths) <= 1.2 * BINS
  if largest <= BINS:
    assert (widths == 1).all()


@pytest.mark.parametrize("largest", [1, 7, 300])
def test_bars_show_how_often_a_number_occurs(largest):
  figure = pytest.importorskip("matplotlib.figure").Figure()
  axis = figure.subplots()
  numbers = np.random.default_rng(0).integers(1, largest + 1, 5_000)
  numbers[0] = largest
  draw_histogram(axis, numbers, xlabel="events", ylabel="users")
  heights, edges, _ = axis.patches[0].get_data()
  for height, low, high in zip(heights, edges, edges[1:], strict=False):
    inside = [n for n in range(1, largest + 1) if low < n < high]
    assert height == pytest.approx(np.mean([(numbers == n).sum() for n in inside]))
  assert axis.get_ylabel() == ("users" if largest <= BINS else "users per number")
  figure.canvas.draw()
  if largest <= BINS:
    assert all(tick % 1 == 0 for tick in axis.get_xticks())
