"""Items of which only the content is known: appended to a trained recommender, or in training."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.config.schema import FROM_EVENTS
from mmesid_jax.models.item_encoder import NO_CODE
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.variables import Frozen


def with_new_items(
  model: RecommenderModel, features: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]
) -> RecommenderModel:
  """A model whose items I + 1 .. I + E are new; what it shares with `model` is not copied.

  features: [E, V] of one modality or more, in the space of the model's own tables; codes: int32
  [E, L] of those of them that the model reads codes of (others are not read). Nothing was learned
  of a new item, so its learned row is 0 and has no weight in the fusion. A modality that is not
  given has no weight and no codes either, and is read as the mean of the trained items' vectors.
  The fusion takes a new item for as rare as the rarest trained one. Scores of the trained items
  stay as they are. Raises ValueError for modalities, codes or shapes that do not fit.
  """
  items, gates = model.items, model.gates
  _check(model, features, codes)
  E = len(next(iter(features.values())))
  I = len(items.identity_ID[...])  # noqa: E741
  known_IO = np.ones((I, gates.sources), bool)
  if gates.known_IO is not None:
    known_IO = np.asarray(gates.known_IO[...])
  trained_I = known_IO[:, 0] & (np.arange(I) > 0)  # not those that were added before

  def rows(modality: str) -> jax.Array:
    if modality in features:
      return jnp.asarray(features[modality], jnp.float32)
    mean_V = np.asarray(items.feature_IV[modality][...])[trained_I].mean(0)
    return jnp.broadcast_to(mean_V, (E, len(mean_V)))

  def coded(modality: str, L: int) -> jax.Array:
    given = modality in features
    return jnp.asarray(codes[modality]) if given else jnp.full((E, L), NO_CODE)

  new = _beside(model)
  new.items.num_items += E
  identity_ID = items.identity_ID[...]
  new.items.identity_ID = nnx.Param(_below(identity_ID, jnp.zeros((E, identity_ID.shape[1]))))
  new.items.feature_IV = nnx.Dict(
    {m: Frozen(_below(items.feature_IV[m][...], rows(m))) for m in items.modalities}
  )
  new.items.code_IL = nnx.Dict(
    {m: Frozen(_below(x[...], coded(m, x[...].shape[1]))) for m, x in items.code_IL.items()}
  )
  new.gates.frequency_I = Frozen(_below(gates.frequency_I[...], jnp.zeros(E)))
  known_EO = jnp.broadcast_to(_known(model, features), (E, gates.sources))
  new.gates.known_IO = Frozen(_below(jnp.asarray(known_IO), known_EO))
  return new


def mask_as_new(model: RecommenderModel, new_I: jax.Array) -> RecommenderModel:
  """`model`, with what `with_new_items` would make of the items that new_I marks, given all of
  their content: every modality but the one that comes from events.

  new_I: bool [I + 1]. Gradients reach the arrays of `model`. A step that trains on it learns to
  read and to rank items by content alone, beside items of which more is known.
  """
  items, gates = model.items, model.gates
  content = [m for m in items.modalities if m != FROM_EVENTS]
  new_I = jnp.pad(new_I, (0, len(items.identity_ID[...]) - len(new_I)))  # a mesh fills tables up
  new = _beside(model)
  new.items.identity_ID = nnx.Param(jnp.where(new_I[:, None], 0, items.identity_ID[...]))
  new.gates.frequency_I = Frozen(jnp.where(new_I, 0, gates.frequency_I[...]))
  new.gates.known_IO = Frozen(~new_I[:, None] | _known(model, content))
  for m in items.feature_IV.keys() - content:
    x_IV = items.feature_IV[m][...]
    mean_V = x_IV[1 : items.num_items + 1].mean(0)
    new.items.feature_IV[m] = Frozen(jnp.where(new_I[:, None], mean_V, x_IV))
  for m in items.code_IL.keys() - content:
    new.items.code_IL[m] = Frozen(jnp.where(new_I[:, None], NO_CODE, items.code_IL[m][...]))
  return new


def _beside(model: RecommenderModel) -> RecommenderModel:
  """Other Variables around the same arrays."""
  return nnx.merge(*nnx.split(model))


def _known(model: RecommenderModel, modalities) -> jax.Array:
  """bool [1 + M]: the sources that a new item has."""
  return jnp.asarray([False, *(m in modalities for m in model.items.modalities)])


def _below(table: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.concatenate([table, rows.astype(table.dtype)])


def _check(
  model: RecommenderModel, features: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]
) -> None:
  items = model.items
  widths = {m: table[...].shape[1] for m, table in items.feature_IV.items()}
  if not features or not features.keys() <= widths.keys():
    raise ValueError(f"features of {list(features)}; expected some of {list(widths)}")
  levels = {m: x[...].shape[1] for m, x in items.code_IL.items() if m in features}
  if missing := levels.keys() - codes.keys():
    raise ValueError(f"no codes of {sorted(missing)}")
  E = len(next(iter(features.values())))
  given = [(f"features.{m}", x, (E, widths[m])) for m, x in features.items()]
  given += [(f"codes.{m}", codes[m], (E, L)) for m, L in levels.items()]
  for name, x, shape in given:
    if x.shape != shape:
      raise ValueError(f"{name} has shape {x.shape}; expected {shape}")
  for m in levels:
    C = items.codebook_LCD[m][...].shape[1]
    if codes[m].min(initial=0) < 0 or codes[m].max(initial=0) >= C:
      raise ValueError(f"codes.{m}: expected 0 to {C - 1}")
