"""Items that training never saw, appended to a trained recommender."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.recommender import RecommenderModel
from mmesid_jax.models.variables import Frozen


def with_new_items(
  model: RecommenderModel, features: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]
) -> RecommenderModel:
  """A model whose items I + 1 .. I + N are new; what it shares with `model` is not copied.

  features: [N, V] of one modality or more, in the space of the model's own tables; codes: int32
  [N, L] of every modality that the model reads codes of (others are not read). Nothing was learned
  of a new item, so its learned row is 0 and has no weight in the fusion. A modality that is not
  given has no weight either, and is read as the mean of the trained items' vectors. The fusion
  takes a new item for as rare as the rarest trained one. Scores of the trained items stay as they
  are. Raises ValueError for modalities, codes or shapes that do not fit.
  """
  items, gates = model.items, model.gates
  _check(model, features, codes)
  N = len(next(iter(features.values())))
  I = len(items.identity_ID[...])  # noqa: E741
  known_IS = np.ones((I, gates.sources), bool)
  if gates.known_IS is not None:
    known_IS = np.asarray(gates.known_IS[...])
  trained_I = known_IS[:, 0] & (np.arange(I) > 0)  # not those that were added before

  def rows(modality: str) -> jax.Array:
    if modality in features:
      return jnp.asarray(features[modality], jnp.float32)
    mean_V = np.asarray(items.feature_IV[modality][...])[trained_I].mean(0)
    return jnp.broadcast_to(mean_V, (N, len(mean_V)))

  known_NS = np.zeros((N, gates.sources), bool)
  known_NS[:, 1:] = [m in features for m in items.modalities]
  new = nnx.merge(*nnx.split(model))  # other Variables around the same arrays
  new.items.num_items += N
  identity_ID = items.identity_ID[...]
  new.items.identity_ID = nnx.Param(_below(identity_ID, jnp.zeros((N, identity_ID.shape[1]))))
  new.items.feature_IV = nnx.Dict(
    {m: Frozen(_below(items.feature_IV[m][...], rows(m))) for m in items.modalities}
  )
  new.items.code_IL = nnx.Dict(
    {m: Frozen(_below(table[...], jnp.asarray(codes[m]))) for m, table in items.code_IL.items()}
  )
  new.gates.frequency_I = Frozen(_below(gates.frequency_I[...], jnp.zeros(N)))
  new.gates.known_IS = Frozen(_below(jnp.asarray(known_IS), jnp.asarray(known_NS)))
  return new


def _below(table: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.concatenate([table, rows.astype(table.dtype)])


def _check(
  model: RecommenderModel, features: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]
) -> None:
  items = model.items
  widths = {m: table[...].shape[1] for m, table in items.feature_IV.items()}
  levels = {m: table[...].shape[1] for m, table in items.code_IL.items()}
  if not features or not features.keys() <= widths.keys():
    raise ValueError(f"features of {list(features)}; expected some of {list(widths)}")
  if missing := levels.keys() - codes.keys():
    raise ValueError(f"no codes of {sorted(missing)}")
  N = len(next(iter(features.values())))
  given = [(f"features.{m}", x, (N, widths[m])) for m, x in features.items()]
  given += [(f"codes.{m}", codes[m], (N, L)) for m, L in levels.items()]
  for name, x, shape in given:
    if x.shape != shape:
      raise ValueError(f"{name} has shape {x.shape}; expected {shape}")
  for m in levels:
    C = items.codebook_LCD[m][...].shape[1]
    if codes[m].min(initial=0) < 0 or codes[m].max(initial=0) >= C:
      raise ValueError(f"codes.{m}: expected 0 to {C - 1}")
