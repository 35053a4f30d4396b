"""Feature tables for batches of items: on the device, or rows that a batch brings along."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.display import reporter
from mmesid_jax.models.mm_rqvae import MMRQVAE, Autoencoder
from mmesid_jax.parallel.sharding import constrain, lookup_rows
from mmesid_jax.parallel.variables import Frozen

DEVICE_TABLE_BYTES = 2 * 2**30  # tables that take more together stay on the host
CHUNK = 4096  # items encoded at once


class ItemRows(NamedTuple):
  """A batch that brings its features along: ids [B] and modality -> [B, V]."""

  item_B: np.ndarray
  feature_BV: dict[str, np.ndarray]


ItemBatch = np.ndarray | jax.Array | ItemRows  # ids, where the tables are on the device


class FeatureTables(nnx.Module):
  """The model, and the feature tables that its batches of item ids read where they fit the
  device, in the type of their files."""

  def __init__(self, model: MMRQVAE, features: Mapping[str, np.ndarray]):
    self.model = model
    resident = features if fit_device(features) else {}
    self.feature_IV = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in resident.items()})

  def features(self, batch: ItemBatch) -> dict[str, jax.Array]:
    """modality -> float32 [B, V]."""
    if isinstance(batch, ItemRows):
      found = batch.feature_BV
    else:
      found = {m: lookup_rows(table_IV[...], batch) for m, table_IV in self.feature_IV.items()}
    return {m: constrain(x_BV.astype(jnp.float32), "batch", None) for m, x_BV in found.items()}


def fit_device(features: Mapping[str, np.ndarray]) -> bool:
  """Whether the tables are kept on the device."""
  return sum(x.nbytes for x in features.values()) <= DEVICE_TABLE_BYTES


def make_item_batch(features: Mapping[str, np.ndarray], item_B: np.ndarray) -> ItemBatch:
  """The batch of these items that `FeatureTables.features` takes."""
  if fit_device(features):
    return item_B
  return ItemRows(item_B, {m: x_IV[item_B] for m, x_IV in features.items()})


def item_ids(batch: ItemBatch) -> np.ndarray:
  """The ids [B] of the items of a batch."""
  return batch.item_B if isinstance(batch, ItemRows) else batch


def encode_table(part: Autoencoder, feature_IV: np.ndarray, width: int) -> np.ndarray:
  """The encoder's output for rows 1 to I - 1, float32 [I - 1, width], computed in chunks."""
  encode = nnx.jit(lambda part, x_BV: part.encode(x_BV))
  z_ED = np.empty((len(feature_IV) - 1, width), np.float32)
  for rows in item_chunks(len(z_ED)):
    z_ED[rows.start - 1 : rows.stop - 1] = encode(part, np.float32(feature_IV[rows]))
  return z_ED


def item_chunks(num_items: int) -> Iterator[slice]:
  """Slices of the ids 1 to num_items."""
  for start in reporter.progress(range(1, num_items + 1, CHUNK), "encode", unit="chunks"):
    yield slice(start, min(start + CHUNK, num_items + 1))
