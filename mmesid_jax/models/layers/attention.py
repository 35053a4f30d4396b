"""Masked attention by one of three kernels: XLA's, cuDNN's on NVIDIA GPUs, splash on TPUs.

They compute the same function. The last two never hold the scores of all pairs in memory.
"""

import jax
import jax.numpy as jnp

from mmesid_jax.parallel.mesh import is_partitioned, target_platform
from mmesid_jax.parallel.sharding import partition_spec

BLOCK = 128  # queries, and keys, in a block of the splash kernel


def attention(
  q_RTNH: jax.Array,
  k_RYKH: jax.Array,
  v_RYKH: jax.Array,
  mask_RTY: jax.Array,
  kind: str = "xla",
) -> jax.Array:
  """softmax(q k / sqrt(H)) v under the mask, [R, T, N, H]; the softmax is in float32.

  Grouped-query: K divides N. kind: "xla", "cudnn", "splash", or "auto", which takes
  `preferred_kernel`. A query that sees no key gets a mean of v, or zeros; no target reads it.
  """
  if kind == "auto":
    kind = preferred_kernel(target_platform(), q_RTNH.dtype, q_RTNH.shape[-1])
  if kind == "xla":
    return _xla(q_RTNH, k_RYKH, v_RYKH, mask_RTY)
  kernel = {"cudnn": _cudnn, "splash": _splash}[kind]
  if is_partitioned():  # a kernel cannot be partitioned: every device computes its rows and heads
    q, kv = (partition_spec("batch", None, heads) for heads in ("heads", "kv_heads"))
    specs = (q, kv, kv, partition_spec("batch"))
    kernel = jax.shard_map(kernel, in_specs=specs, out_specs=q, check_vma=False)
  return kernel(q_RTNH, k_RYKH, v_RYKH, mask_RTY)


def preferred_kernel(backend: str, dtype: jax.typing.DTypeLike, head_width: int) -> str:
  """The backend's own kernel if it supports heads of this width and dtype, else "xla"."""
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  if backend in ("gpu", "cuda") and half and head_width <= 128 and head_width % 8 == 0:
    return "cudnn"
  if backend == "tpu" and head_width % 128 == 0:
    return "splash"
  return "xla"


def _xla(q_RTNH, k_RYKH, v_RYKH, mask_RTY):
  return jax.nn.dot_product_attention(q_RTNH, k_RYKH, v_RYKH, mask=mask_RTY[:, None])


def _cudnn(q_RTNH, k_RYKH, v_RYKH, mask_RTY):
  T = q_RTNH.shape[1]
  # cuDNN's gradient needs even lengths.
  q, k, v, mask = _pad(q_RTNH, k_RYKH, v_RYKH, mask_RTY, multiple=8)
  return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")[:, :T]


def _splash(q_RTNH, k_RYKH, v_RYKH, mask_RTY):
  from jax.experimental.pallas.ops.tpu.splash_attention import make_splash_mha_single_device

  def attend_row(q_TNH, k_YKH, v_YKH, mask_TY):
    kernel = make_splash_mha_single_device(
      jnp.broadcast_to(mask_TY, (N, *mask_TY.shape)),
      interpret=target_platform() != "tpu",  # runs the same kernel on other platforms
    )
    # Building the kernel makes an array of this flag too, and jit cannot branch on an array.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    out_NTH = kernel(*(x.swapaxes(0, 1) for x in (q_TNH * H**-0.5, k_YKH, v_YKH)))
    return out_NTH.swapaxes(0, 1)

  T, N, H = q_RTNH.shape[1:]
  padded = _pad(q_RTNH, k_RYKH, v_RYKH, mask_RTY, multiple=BLOCK)
  return jax.vmap(attend_row)(*padded)[:, :T]


def _pad(q_RTNH, k_RYKH, v_RYKH, mask_RTY, *, multiple: int):
  """Pads T and Y to the next multiple; no query sees the added keys."""
  queries, keys = (-n % multiple for n in mask_RTY.shape[1:])

  def pad_axis_1(x, count):
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))

  q, k, v = pad_axis_1(q_RTNH, queries), pad_axis_1(k_RYKH, keys), pad_axis_1(v_RYKH, keys)
  return q, k, v, jnp.pad(mask_RTY, ((0, 0), (0, queries), (0, keys)))
