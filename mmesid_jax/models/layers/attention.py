"""What a token of a shared-prefix row may see, attention under that mask, and where targets read.

Three implementations of one function: XLA's everywhere, cuDNN's on NVIDIA GPUs, splash on TPUs.
The last two never hold the scores of all pairs in memory.
"""

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch
from mmesid_jax.parallel.sharding import lookup, partitioned, platform, shards, spec

BLOCK = 128  # splash works through queries and keys in blocks of so many


def visible(batch: Batch, prompt: int = 0) -> jax.Array:
  """Mask [R, T, P + T], True where the query (axis 1) sees the key (axis 2): prompt, then row.

  A token sees the whole prompt, its own user's trunk up to its horizon, and its own branch up to
  itself. Padding sees nothing but the prompt and is seen by nobody.
  """

  def query(x_RT):
    return x_RT[:, :, None]

  def key(x_RT):
    return x_RT[:, None, :]

  same_user = (query(batch.segment_RT) == key(batch.segment_RT)) & (query(batch.segment_RT) > 0)
  trunk = (key(batch.branch_RT) == 0) & (key(batch.position_RT) < query(batch.horizon_RT))
  same_branch = (query(batch.branch_RT) == key(batch.branch_RT)) & (key(batch.branch_RT) > 0)
  branch = same_branch & (key(batch.response_RT) <= query(batch.response_RT))
  row_RTT = same_user & (trunk | branch)
  return jnp.concatenate([jnp.ones((*row_RTT.shape[:2], prompt), bool), row_RTT], axis=2)


def attention(
  q_RTNH: jax.Array,
  k_RSKH: jax.Array,
  v_RSKH: jax.Array,
  mask_RTS: jax.Array,
  kind: str = "xla",
) -> jax.Array:
  """softmax(q k / sqrt(H)) v under the mask, grouped-query (K divides N); softmax in float32.

  kind: "xla", "cudnn", "splash", or "auto", which is what `preferred` says. A query that sees
  nothing gets a mean of v, or zeros, which no target ever reads.
  """
  if kind == "auto":
    kind = preferred(platform(), q_RTNH.dtype, q_RTNH.shape[-1])
  if kind == "xla":
    return _xla(q_RTNH, k_RSKH, v_RSKH, mask_RTS)
  kernel = {"cudnn": _cudnn, "splash": _splash}[kind]
  if partitioned():  # no compiler cuts a kernel: every device takes its own rows and heads
    q, kv = (spec("batch", None, heads) for heads in ("heads", "kv_heads"))
    specs = (q, kv, kv, spec("batch"))
    kernel = jax.shard_map(kernel, in_specs=specs, out_specs=q, check_vma=False)
  return kernel(q_RTNH, k_RSKH, v_RSKH, mask_RTS)


def preferred(backend: str, dtype: jax.typing.DTypeLike, head_width: int) -> str:
  """The kernel of the backend where it takes heads of this width and dtype, else "xla"."""
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  if backend in ("gpu", "cuda") and half and head_width <= 128 and head_width % 8 == 0:
    return "cudnn"
  if backend == "tpu" and head_width % 128 == 0:
    return "splash"
  return "xla"


def _xla(q_RTNH, k_RSKH, v_RSKH, mask_RTS):
  return jax.nn.dot_product_attention(q_RTNH, k_RSKH, v_RSKH, mask=mask_RTS[:, None])


def _cudnn(q_RTNH, k_RSKH, v_RSKH, mask_RTS):
  T = q_RTNH.shape[1]
  q, k, v, mask = _padded(q_RTNH, k_RSKH, v_RSKH, mask_RTS, multiple=8)  # its gradient wants even
  return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")[:, :T]


def _splash(q_RTNH, k_RSKH, v_RSKH, mask_RTS):
  from jax.experimental.pallas.ops.tpu.splash_attention import make_splash_mha_single_device

  def row(q_TNH, k_SKH, v_SKH, mask_TS):
    kernel = make_splash_mha_single_device(
      jnp.broadcast_to(mask_TS, (N, *mask_TS.shape)),
      interpret=platform() != "tpu",  # elsewhere the same kernel, step by step
    )
    # Making the kernel turns this flag, too, into an array, which under jit nothing can branch on.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    out_NTH = kernel(*(x.swapaxes(0, 1) for x in (q_TNH * H**-0.5, k_SKH, v_SKH)))
    return out_NTH.swapaxes(0, 1)

  T, N, H = q_RTNH.shape[1:]
  return jax.vmap(row)(*_padded(q_RTNH, k_RSKH, v_RSKH, mask_RTS, multiple=BLOCK))[:, :T]


def _padded(q_RTNH, k_RSKH, v_RSKH, mask_RTS, *, multiple: int):
  """Queries and keys up to the next multiple; nobody sees the new keys."""
  T, S = (-n % multiple for n in mask_RTS.shape[1:])
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0))) for x, n in ((q_RTNH, T), (k_RSKH, S), (v_RSKH, S))
  )
  return q, k, v, jnp.pad(mask_RTS, ((0, 0), (0, T), (0, S)))


def groups(rows: int) -> int:
  """Into how many groups a mesh cuts so many rows; 1 without one."""
  parts = shards("batch")
  return parts if rows % parts == 0 else 1


def read(x_GXD: jax.Array, prompt: int, read_Q: jax.Array) -> jax.Array:
  """The hidden state [Q, D] at which every target is predicted, out of the prompt's and the rows'
  behind them, both in every group of rows: the end of the prompt or a token."""
  G, X, D = x_GXD.shape
  token_Q = jnp.maximum(read_Q - 1, 0)
  group_Q, place_Q = token_Q // (X - prompt), prompt + token_Q % (X - prompt)
  row_Q = jnp.where(read_Q == 0, prompt - 1, group_Q * X + place_Q)
  row_XD = x_GXD.reshape(G * X, D)
  return row_XD[row_Q] if G == 1 else lookup(row_XD, row_Q, "batch")
