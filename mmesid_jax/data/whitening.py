"""Whitening of feature tables: principal components of the items, scaled to one deviation."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.features import row_chunks


def mean_and_deviation(table_IV: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the mean of rows 1..I-1, float64 [V], and the standard deviation of all values from it.

  One number for the whole table; the table is read in chunks.
  """
  total_V = sum(x.sum(0, dtype=np.float64) for _, x in row_chunks(table_IV))
  mean_V = total_V / (len(table_IV) - 1)
  squares = sum(float(((x - mean_V) ** 2).sum()) for _, x in row_chunks(table_IV))
  return mean_V, (squares / (len(table_IV) - 1) / len(mean_V)) ** 0.5


def covariance(table_IV: np.ndarray, mean_V: np.ndarray) -> np.ndarray:
  """Covariance of rows 1..I-1 around their mean, float64 [V, V]; the table is read in chunks."""
  centered = (x - mean_V for _, x in row_chunks(table_IV))
  return sum(x.T @ x for x in centered) / (len(table_IV) - 1)


class Whitening(NamedTuple):
  """The map that whitens rows [E, V] of known or new items: float64 mean [V] and map [V, W]."""

  mean_V: np.ndarray
  map_VW: np.ndarray

  def __call__(self, x_EV: np.ndarray) -> np.ndarray:
    """Whitens rows [E, V] -> float32 [E, W]."""
    return ((x_EV.astype(np.float64) - self.mean_V) @ self.map_VW).astype(np.float32)

  def tensors(self, prefix: str) -> dict[str, np.ndarray]:
    """The two arrays by name, for an artifact."""
    return {f"{prefix}mean": self.mean_V, f"{prefix}map": self.map_VW}


def whitenings_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Whitening]:
  """name -> Whitening, of arrays named "NAME.mean" and "NAME.map"."""
  names = {name.rpartition(".")[0] for name in tensors}
  return {name: Whitening(tensors[f"{name}.mean"], tensors[f"{name}.map"]) for name in names}


def fit_whitening(x_IV: np.ndarray, width: int, std: float) -> Whitening:
  """Fits a map to the first `width` principal components of rows 1..I-1, each with deviation `std`.

  Directions without variance (numerical rank) become zero columns rather than amplified noise.
  Deterministic: each component's sign makes its largest loading positive. Raises ValueError when
  `width` exceeds V.
  """
  mean_V, _ = mean_and_deviation(x_IV)
  variance, directions = principal_components(covariance(x_IV, mean_V), width)
  floor = max(variance[0], 0.0) * 1e-10
  scale = np.where(variance > floor, std / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
  return Whitening(mean_V, directions * scale)


def whiten(x_IV: np.ndarray, whitening: Whitening) -> np.ndarray:
  """Whitens a table [I, V] -> float32 [I, W]; row 0 is zero."""
  whitened = whitening(x_IV)
  whitened[0] = 0
  return whitened


def principal_components(covariance_VV: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the `width` largest variances [width] and their directions [V, width].

  Each direction's sign makes its largest loading positive. Raises ValueError when `width` exceeds
  V.
  """
  if not 1 <= width <= len(covariance_VV):
    raise ValueError(f"width {width} of a table with rows of {len(covariance_VV)} values")
  variance_V, directions_VV = np.linalg.eigh(covariance_VV)
  directions = directions_VV[:, ::-1][:, :width]
  largest = np.abs(directions).argmax(axis=0)
  signs = np.where(directions[largest, np.arange(width)] < 0, -1.0, 1.0)
  return variance_V[::-1][:width], directions * signs
