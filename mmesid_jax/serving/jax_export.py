"""A model as one jax.export artifact, which runs where this package is not installed."""

import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mmesid_jax.data.packing import Batch
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder, check_new_directory
from mmesid_jax.files.feature_table import write_array
from mmesid_jax.serving.ranker import Ranker, rank_items

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
BFLOAT16 = "bfloat16"  # stored as uint16: .npy does not know it


def write_exported(
  ranker: Ranker, output: pathlib.Path, *, batch: int, history: int, top_k: int
) -> None:
  """Writes a new folder: model.jax_export (StableHLO and calling convention), weights/*.npy, and
  export.json, which names the shapes.

  The function takes (weights, histories int32 [batch, history], repeat bool) and returns
  (items int32 [batch, top_k], scores float32 [batch, top_k]). Histories hold item ids, oldest
  first, then zeros. Scores of places that no item is left for are -inf.

  Args:
    ranker: the model.
    batch: histories in one call. history: the most items of a history; longer ones must be cut to
      their newest items, and then older items may be recommended again.
    top_k: items in an answer.

  Raises UserError for sizes that do not fit the model, a folder that exists, and what the disk
  refuses.
  """
  check_new_directory(output)
  ranker.check_top_k(top_k)
  longest = ranker.layout.longest_history
  if not 1 <= history <= longest:
    raise UserError(f"--max_history={history}: expected 1 to {longest}, the items of a row")
  graph, state, catalogue = ranker.parts
  leaves, structure = jax.tree.flatten(state)
  names = [
    jax.tree_util.keystr(path, simple=True, separator=".")
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ]
  stored = {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}
  if isinstance(catalogue, jax.Array):
    stored["catalogue"] = np.asarray(catalogue)
  dtypes = {name: x.dtype.name for name, x in stored.items()}
  stored = {
    name: x.view(np.uint16) if x.dtype.name == BFLOAT16 else x for name, x in stored.items()
  }
  response = ranker.layout.response

  def recommend(weights: Mapping[str, jax.Array], history_QX: jax.Array, repeat: jax.Array):
    arrays = {
      name: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if dtypes[name] == BFLOAT16 else x
      for name, x in weights.items()
    }
    restored = jax.tree.unflatten(structure, [arrays[name] for name in names])
    packed = _batch_of_rows(history_QX, response)
    offered_2 = jnp.array([1, ranker.num_items + 1])
    top = rank_items(
      graph,
      restored,
      arrays.get("catalogue", catalogue),
      packed,
      offered_2,
      repeat,
      top_k=top_k,
    )
    return top.item_QA, top.score_QA

  shapes = (
    {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()},
    jax.ShapeDtypeStruct((batch, history), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.bool),
  )
  exported = export.export(jax.jit(recommend), platforms=PLATFORMS)(*shapes)
  about = {
    "inputs": f"weights by name, int32 [{batch}, {history}] item ids (oldest first, then 0), bool",
    "outputs": f"int32 [{batch}, {top_k}] item ids, float32 [{batch}, {top_k}] scores",
    **{"model": ranker.kind, "batch": batch, "history": history, "top_k": top_k},
    **{"items": ranker.num_items, "platforms": PLATFORMS, "jax": jax.__version__},
  }
  with atomic_folder(output) as folder:
    (folder / "model.jax_export").write_bytes(exported.serialize())
    (folder / "weights").mkdir()
    for name, x in stored.items():
      write_array(folder / "weights" / f"{name}.npy", x)
    (folder / "export.json").write_text(json.dumps(about, indent=2) + "\n")
  size = sum(x.nbytes for x in stored.values()) / 2**20
  reporter.info(f"{output}: {ranker.kind}, {batch} histories of {history} items, {size:.1f} MiB")


def _batch_of_rows(history_QX: jax.Array, response: int) -> Batch:
  """A row for each history: a trunk of X tokens, then the response tokens of the one target.

  The same tokens as those of `Packer`, at fixed places; padding is between trunk and response.
  """
  Q, X = history_QX.shape
  T = X + response
  length_Q1 = (history_QX > 0).sum(1, keepdims=True)
  place_T = jnp.broadcast_to(jnp.arange(T), (Q, T))
  in_trunk_QT, in_branch_QT = place_T < length_Q1, place_T >= X

  def of(trunk, branch):
    return jnp.where(in_branch_QT, branch, jnp.where(in_trunk_QT, trunk, 0)).astype(jnp.int32)

  slot_QT = jnp.arange(1, Q * T + 1).reshape(Q, T)  # of the item in the list of all places
  item_QT = jnp.pad(history_QX, ((0, 0), (0, response)))
  first_Q = 1 + T * jnp.arange(Q)
  read_Q = first_Q + T - 1
  if not response:
    read_Q = jnp.where(length_Q1[:, 0] > 0, first_Q + length_Q1[:, 0] - 1, 0)
  none_Q = jnp.zeros(Q, jnp.int32)
  newest_QX = jnp.take_along_axis(history_QX, jnp.maximum(length_Q1 - 1 - jnp.arange(X), 0), axis=1)
  return Batch(
    item_E=jnp.pad(item_QT.reshape(-1), (1, 0)),
    slot_RT=of(slot_QT, 0),
    segment_RT=of(1, 1),
    position_RT=of(place_T, length_Q1 + place_T - X),
    horizon_RT=of(place_T + 1, length_Q1),
    branch_RT=of(0, 1),
    response_RT=of(0, place_T - X),
    spelled_RT=jnp.zeros((Q, T), jnp.int32),
    target_Q=none_Q,
    read_Q=read_Q.astype(jnp.int32),
    code_read_Q=none_Q,
    weight_Q=jnp.ones(Q),
    piece_Q=jnp.arange(Q),
    history_QX=jnp.where(jnp.arange(X) < length_Q1, newest_QX, 0),
  )
