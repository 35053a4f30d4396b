"""Loading: what lands where, on how many devices, at what cost in bytes read and memory."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from checkpoints import FAMILIES, write_tiny_checkpoint
from flax import nnx

from mmesid_jax.errors import UserError
from mmesid_jax.hf.llama_weights import (
  UNUSED,
  entries,
  load_weights,
  to_hugging_face,
  weight_of,
)
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.models.layers.weight_quantization import BLOCK
from mmesid_jax.models.llama import Llama
from mmesid_jax.parallel.mesh import make_mesh
from mmesid_jax.parallel.variables import Pretrained

SIZES = {"layers": 3, "D": 512, "F": 1024, "N": 8, "K": 4, "H": 64}
MESHES = [(1, 8, 1), (1, 1, 4), (2, 2, 2), (8, 1, 1)]  # data, fsdp, tensor


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])  # mistral's are llama's
def base(request, tmp_path_factory):
  directory = tmp_path_factory.mktemp("checkpoint") / "base"
  return directory, write_tiny_checkpoint(directory, **SIZES, **FAMILIES[request.param])


def loaded(base, weights="bfloat16", mesh=None):
  directory, config = base
  config = dataclasses.replace(config, weights=weights)
  llama = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
  checkpoint = Checkpoint(directory)
  with jax.set_mesh(mesh or make_mesh()):
    load_weights(llama, checkpoint)
  return llama, checkpoint


def stored_bytes(checkpoint: Checkpoint) -> int:
  whole = [checkpoint.read(key).nbytes for key in checkpoint.keys() if key not in UNUSED]
  return sum(whole)


@pytest.mark.parametrize("weights", ["bfloat16", "nf4"])
@pytest.mark.parametrize("shape", MESHES)
def test_every_byte_is_read_once_on_any_mesh(base, shape, weights):
  """Fully sharded: every device reads its slice. Replicated: one reads for all."""
  mesh = make_mesh(*shape)
  llama, checkpoint = loaded(base, weights, mesh)
  assert checkpoint.bytes_read == stored_bytes(Checkpoint(base[0]))
  plain, _ = loaded(base, weights)
  pairs = zip(*(jax.tree.leaves(nnx.state(x, Pretrained)) for x in (llama, plain)), strict=True)
  for ours, expected in pairs:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_sharded_weights_are_stored_in_parts(base):
  llama, _ = loaded(base, mesh=make_mesh(1, 4, 2))
  gate = llama.blocks.mlp.gate.weight[...]
  assert {s.data.shape for s in gate.addressable_shards} == {(3, 512 // 4, 1024 // 2)}
  k = llama.blocks.attention.k.weight[...]
  assert {s.data.shape for s in k.addressable_shards} == {(3, 512 // 4, 4 // 2, 64)}


def test_the_host_holds_less_than_three_slices(base):
  """The one that is read, and the one before, which JAX lets go when the next is handed over."""
  mesh = make_mesh(1, 8, 1)
  loaded(base, mesh=mesh)  # imports and compiling are not counted
  tracemalloc.start()
  llama, _ = loaded(base, mesh=mesh)
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  slices = [
    weight_of(llama, entry)[...].addressable_shards[0].data.nbytes
    for entry in entries(llama.config)
  ]
  assert peak - held < 3 * max(slices)


def test_a_mesh_that_does_not_divide_is_refused(base):
  with pytest.raises(UserError, match=r"kv_heads=4 does not divide by mesh\.tensor = 8"):
    loaded(base, mesh=make_mesh(1, 1, 8))  # 4 key/value heads


def test_quantized_blocks_are_never_cut(tmp_path):
  directory = tmp_path / "narrow"
  config = write_tiny_checkpoint(directory, D=BLOCK)
  with pytest.raises(UserError, match=f"whole blocks of {BLOCK}"):
    loaded((directory, config), "int8", make_mesh(1, 2, 1))


def test_export_is_what_was_read(base):
  llama, checkpoint = loaded(base)
  exported = dict(to_hugging_face(llama, checkpoint))
  assert sorted(exported) == sorted(checkpoint.keys())
  for key, array in exported.items():
    assert array.tobytes() == checkpoint.read(key).tobytes(), key


def test_quantized_weights_are_exported_from_their_source_only(base):
  llama, checkpoint = loaded(base, "int8")
  for key, array in to_hugging_face(llama, checkpoint):
    assert array.tobytes() == checkpoint.read(key).tobytes(), key
  with pytest.raises(ValueError, match="int8: name the checkpoint"):
    list(to_hugging_face(llama))
