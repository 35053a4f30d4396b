"""One function, several kernels: all give what XLA's gives, under the mask of packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.layers.attention import attention, preferred_kernel
from mmesid_jax.models.packed_rows import visibility_mask, window_mask
from mmesid_jax.parallel.mesh import make_mesh

P, N, K = 3, 4, 2


def packed_mask(row_length: int, window: int | None = None) -> jax.Array:
  """Two rows of several users with two response tokens after every target."""
  rng = np.random.default_rng(0)
  histories = [rng.integers(1, 40, n) for n in (1, 7, 20, 3, 15, 9, 2)]
  (batch,) = batch_sequences(histories, Layout(2, row_length, 64, response=2))
  mask_RTY = visibility_mask(batch, P)
  return mask_RTY if window is None else mask_RTY & window_mask(batch.position_RT, P, window)


def random_array(mask_RTS: jax.Array, H: int, dtype) -> list[jax.Array]:
  R, T, S = mask_RTS.shape
  shapes = ((R, T, N, H), (R, S, K, H), (R, S, K, H), (R, T, N, H))
  keys = jax.random.split(jax.random.key(0), 4)
  return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def output_and_gradient(kind: str, mask_RTS, *arrays):
  """Compares only queries that see a token of their row: others are padding."""
  q, k, v, cotangent = arrays
  used_RT = mask_RTS[:, :, P:].any(2)

  def value(q, k, v):
    out_RTNH = jnp.where(used_RT[..., None, None], attention(q, k, v, mask_RTS, kind), 0)
    return (out_RTNH * cotangent).astype(jnp.float32).sum(), out_RTNH

  (_, out), gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return out, *gradient


def assert_like_xla(
  kind: str, H: int, dtype, tolerance: float, row_length: int = 128, window: int | None = None
) -> None:
  mask_RTS = packed_mask(row_length, window)
  arrays = random_array(mask_RTS, H, dtype)
  found, expected = (output_and_gradient(k, mask_RTS, *arrays) for k in (kind, "xla"))
  for ours, xla in zip(found, expected, strict=True):
    ours, xla = (np.asarray(x, np.float32) for x in (ours, xla))
    np.testing.assert_allclose(ours, xla, atol=tolerance * np.abs(xla).max())


@pytest.mark.parametrize("window", [None, 4])
def test_splash_equals_xla(window):
  """The TPU's kernel, interpreted: queries and keys that do not divide into its blocks."""
  assert_like_xla("splash", 128, jnp.float32, 1e-5, row_length=136, window=window)


@pytest.mark.slow
def test_a_kernel_on_a_mesh_takes_every_devices_own_rows_and_heads():
  with jax.set_mesh(make_mesh(2, 1, 2)):
    assert_like_xla("splash", 128, jnp.float32, 1e-5, row_length=136)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("H", [64, 128])
def test_cudnn_equals_xla(H, window):
  assert_like_xla("cudnn", H, jnp.bfloat16, 2e-2, window=window)


def test_kernels_are_preferred_where_they_take_the_heads():
  assert preferred_kernel("gpu", jnp.bfloat16, 128) == "cudnn"
  assert preferred_kernel("gpu", jnp.float32, 128) == "xla"  # cuDNN's takes half precision only
  assert preferred_kernel("gpu", jnp.bfloat16, 136) == "xla"
  assert preferred_kernel("tpu", jnp.float32, 128) == "splash"
  assert preferred_kernel("tpu", jnp.bfloat16, 64) == "xla"
  assert preferred_kernel("cpu", jnp.bfloat16, 128) == "xla"


def test_the_prompt_is_seen_by_all_and_padding_by_nobody():
  mask_RTS = np.asarray(packed_mask(128))
  assert mask_RTS[:, :, :P].all()
  row_RTT = mask_RTS[:, :, P:]
  used_RT = row_RTT.any(2)
  assert not row_RTT.any(1)[~used_RT].any()
