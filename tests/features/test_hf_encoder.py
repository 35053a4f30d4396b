"""Directories that no encoder can be read from: one line each, before torch loads anything."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import write_tiny_checkpoint

from mmesid_jax.errors import UserError
from mmesid_jax.features.hf_encoder import check_files
from mmesid_jax.hf.safetensors_dir import INDEX, SINGLE

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def base(tmp_path):
  write_tiny_checkpoint(tmp_path / "base")
  return tmp_path / "base"


def retype(dtype, key=UP):
  """Damage that stores a tensor in another format."""

  def damage(base):
    tensors = safetensors.numpy.load_file(base / SINGLE)
    safetensors.numpy.save_file(tensors | {key: np.ones(3).astype(dtype)}, base / SINGLE)

  return damage


def test_whole_directories_are_taken(base):
  check_files(base)
  retype(np.int64, "embeddings.position_ids")(base)  # a buffer, as CLIP has it
  check_files(base)


@pytest.mark.parametrize(
  "damage, message",
  [
    (retype(np.int8), f"{UP} holds I8, expected one of F32, F16, BF16; .*before it was quantized"),
    (retype(ml_dtypes.float8_e4m3fn), f"{UP} holds F8_E4M3"),
    (lambda b: (b / "adapter_config.json").write_text("{}"), "adapter_config.json: makes .*merge"),
    (lambda b: (b / SINGLE).rename(b / "pytorch_model.bin"), "pickles are not opened"),
    (lambda b: (b / SINGLE).write_bytes(b"cut"), "not a whole safetensors file"),
    (lambda b: (b / SINGLE).rename(b / INDEX), f"{INDEX}: not a JSON object"),
  ],
)
def test_others_are_refused_in_one_line(base, damage, message):
  damage(base)
  with pytest.raises(UserError, match=message) as caught:
    check_files(base)
  assert "\n" not in str(caught.value)
