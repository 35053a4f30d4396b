"""New items, of which only the content is known: appended to a model, or imitated in training."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.config.schema import FROM_EVENTS
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import NO_CODE, append_ids, join_codes


def with_new_items(
  model: RecommenderModel, features: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]
) -> RecommenderModel:
  """Returns a model with E more items, after the last of `model`, whose other arrays it shares.

  A new item has no learned row: the row is 0 and has weight 0 in the fusion. A modality that is not
  given has weight 0 and no codes, and its feature is the mean of the trained items' vectors. The
  fusion treats new items like the rarest trained item. Scores of the trained items do not change.
  Where IDs are generated, an item with all codes gets one, as `append_ids` says.

  Args:
    model: a trained model.
    features: modality -> [E, V], one modality or more, in the space of the model's own tables.
    codes: modality -> int32 [E, L], for each given modality of which the model reads codes; others
      are ignored.

  Raises ValueError when modalities, codes or shapes do not fit the model.
  """
  items, gates = model.items, model.gates
  _require_fit(model, features, codes)
  E = len(next(iter(features.values())))
  I = len(items.identity_ID[...])  # noqa: E741
  known_IO = np.ones((I, gates.sources), bool)
  if gates.known_IO is not None:
    known_IO = np.asarray(gates.known_IO[...])
  trained_I = known_IO[:, 0] & (np.arange(I) > 0)  # excludes items that were added earlier

  def new_features(modality: str) -> jax.Array:
    if modality in features:
      return jnp.asarray(features[modality], jnp.float32)
    mean_V = np.asarray(items.feature_IV[modality][...])[trained_I].mean(0)
    return jnp.broadcast_to(mean_V, (E, len(mean_V)))

  def new_codes(modality: str, L: int) -> jax.Array:
    given = modality in features
    return jnp.asarray(codes[modality]) if given else jnp.full((E, L), NO_CODE)

  new = _share_arrays(model)
  new.items.num_items += E
  identity_ID = items.identity_ID[...]
  new.items.identity_ID = nnx.Param(_append_rows(identity_ID, jnp.zeros((E, identity_ID.shape[1]))))
  new.items.feature_IV = nnx.Dict(
    {m: Frozen(_append_rows(items.feature_IV[m][...], new_features(m))) for m in items.modalities}
  )
  new.items.code_IL = nnx.Dict(
    {
      m: Frozen(_append_rows(x[...], new_codes(m, x[...].shape[1])))
      for m, x in items.code_IL.items()
    }
  )
  if (head := model.generate) is not None:
    added = [new_codes(m, items.code_IL[m][...].shape[1]) for m in head.modalities]
    new_EL = join_codes(added)
    new_EL[(new_EL == NO_CODE).any(1)] = NO_CODE  # no ID
    id_IL = append_ids(np.asarray(head.id_IL[...]), new_EL)
    new.generate.set_ids(id_IL, build_trie(id_IL))
  new.gates.frequency_I = Frozen(_append_rows(gates.frequency_I[...], jnp.zeros(E)))
  known_EO = jnp.broadcast_to(_known_origins(model, features), (E, gates.sources))
  new.gates.known_IO = Frozen(_append_rows(jnp.asarray(known_IO), known_EO))
  return new


def mask_as_new(model: RecommenderModel, new_I: jax.Array) -> RecommenderModel:
  """Returns `model` with the items in new_I treated as `with_new_items` treats new ones.

  They keep all of their content: every modality except the one that comes from events. Training on
  the result teaches the model to read and rank items by content alone, among items with learned
  rows. Gradients reach the arrays of `model`.

  new_I: bool, True for the items to treat as new.
  """
  items, gates = model.items, model.gates
  content = [m for m in items.modalities if m != FROM_EVENTS]
  new_I = jnp.pad(
    new_I, (0, len(items.identity_ID[...]) - len(new_I))
  )  # tables may have rows that a mesh needs
  new = _share_arrays(model)
  new.items.identity_ID = nnx.Param(jnp.where(new_I[:, None], 0, items.identity_ID[...]))
  new.gates.frequency_I = Frozen(jnp.where(new_I, 0, gates.frequency_I[...]))
  new.gates.known_IO = Frozen(~new_I[:, None] | _known_origins(model, content))
  for m in items.feature_IV.keys() - content:
    x_IV = items.feature_IV[m][...]
    mean_V = x_IV[1 : items.num_items + 1].mean(0)
    new.items.feature_IV[m] = Frozen(jnp.where(new_I[:, None], mean_V, x_IV))
  for m in items.code_IL.keys() - content:
    new.items.code_IL[m] = Frozen(jnp.where(new_I[:, None], NO_CODE, items.code_IL[m][...]))
  return new


def _share_arrays(model: RecommenderModel) -> RecommenderModel:
  """A copy of the model with its own Variables and the same arrays."""
  return nnx.merge(*nnx.split(model))


def _known_origins(model: RecommenderModel, modalities) -> jax.Array:
  """Bool [O]: the origins that a new item with these modalities has."""
  return jnp.asarray([False, *(m in modalities for m in model.items.modalities)])


def _append_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.concatenate([table, rows.astype(table.dtype)])


def _require_fit(
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
