"""What a training step of the recommender has a device do: its kernels, and what it holds.

Operations are counted from shapes, two a multiplication and addition, padding included. Bytes are
what a kernel reads and writes of the device's memory, once each. How XLA fuses is assumed;
roofline.py says how.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from flax import nnx

from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models.fusion import should_project_catalogue
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.devices import DEVICES as DATA_SHEETS
from mmesid_jax.parallel.variables import Frozen, Pretrained

ITEMSIZE = {"float32": 4, "bfloat16": 2}


class Device(NamedTuple):
  """Rates a second: operations in bfloat16, the part of them in float32, bytes, random numbers;
  bytes of memory; whether XLA copies a layer's weights out of the stack."""

  name: str
  half: float
  single: float
  bandwidth: float
  memory: float
  random: float
  copies: bool


def sheet(name: str, single: float, bandwidth: float) -> tuple[float, float, float, float]:
  """The first rates and the memory of a Device."""
  found = DATA_SHEETS[name]
  return found.peak, single, bandwidth, found.memory


# Random numbers: integer operations a second (64 lanes a multiprocessor of a GPU; 4 x 1024 lanes a
# core of a TPU, v5p has two; at the clock that gives the peak), by what one takes: a quarter of
# Philox's ten rounds of 4 halves of products, 4 xors and 2 additions (a half of a product is worth
# three on a TPU).
DEVICES = (
  Device("H200", *sheet("h200", 0.5, 4.8e12), 16.7e12 / 25, True),
  Device("H100 SXM", *sheet("h100", 0.5, 3.35e12), 16.7e12 / 25, True),
  Device("A100 80G", *sheet("a100-80g", 0.5, 2.04e12), 9.7e12 / 25, True),
  Device("TPU v5p", *sheet("v5p", 1.0, 2.77e12), 14.3e12 / 45, False),
  Device("TPU v6e", *sheet("v6e", 1.0, 1.64e12), 7.2e12 / 45, False),
)


class Kernel(NamedTuple):
  """One kernel, or `times` alike. unit: what `operations` are: in "half" or "single" precision, or
  "random" numbers. phase "again": computed a second time for the backward pass."""

  part: str
  phase: str
  operations: float = 0
  bytes: float = 0
  unit: str = "half"
  times: int = 1

  def seconds(self, device: Device, compute: float, memory: float) -> float:
    """By the slower of the two; compute, memory: parts of the device's rates that are reached."""
    rate = device.random if self.unit == "random" else device.half
    rate *= device.single if self.unit == "single" else 1
    computing = self.operations / (rate * compute)
    return self.times * max(computing, self.bytes / (device.bandwidth * memory))


@dataclasses.dataclass(frozen=True)
class Step:
  """What is predicted. model: its shapes; c: of its backbone; compute: of its item encoder; kept:
  what `kept` finds of the model with every remat; flash: whether attention is a kernel that holds
  no scores; copies: whether devices that copy weights out of the stack of layers do."""

  model: RecommenderModel
  c: LlamaConfig
  layout: Layout
  compute: str
  kept: Mapping[str, Mapping[str, float]]
  flash: bool = True
  copies: bool = True
  training: bool = True

  @property
  def P(self) -> int:
    return len(self.model.prompt_PD)

  @property
  def tokens(self) -> int:
    """X: of the prompt and the rows."""
    return self.P + self.layout.rows * self.layout.row_length

  def kept_by_a_layer(self, remat: str) -> float:
    """Bytes; a flash kernel keeps its output and a float32 a query instead of the pairs."""
    found = self.kept[remat]
    if not self.flash or remat != "none":
      return found["layers"] / self.c.layers
    places = self.layout.rows * self.layout.row_length * self.c.N
    return (found["layers"] - found["pairs"]) / self.c.layers + places * (2 * self.c.H + 4)


def kernels(step: Step, device: Device) -> Iterator[Kernel]:
  """Of one step, or of a forward pass where it is not training."""
  layers = [*projections(step, device), *lora(step), *attention(step), *elementwise(step)]
  for kernel in [*(k._replace(times=step.c.layers) for k in layers), *encoder(step), *scores(step)]:
    if step.training or kernel.phase == "forward":
      yield kernel
  if step.training:
    yield Kernel("AdamW", "update", bytes=8 * 4 * trained(step.model))


def product(part: str, phase: str, n: int, k: int, m: int, size: int = 2, **more) -> Kernel:
  """[n, k] times [k, m]."""
  return Kernel(part, phase, 2 * n * k * m, size * (n * k + k * m + n * m), **more)


def projections(step: Step, device: Device) -> Iterator[Kernel]:
  c = step.c
  for name, (d_in, shape) in c.projections.items():
    d_out = math.prod(shape)
    for phase in ("forward", "again", "backward"):
      # Nothing in the layer's own backward pass needs what `down` gives.
      if phase == "again" and (c.remat != "layers" or name == "down"):
        continue
      yield product("projections", phase, step.tokens, d_in, d_out)
      if c.weights in ("int8", "nf4"):
        unpacked = (stored(c.weights) + 2) * d_in * d_out
        yield Kernel("weights made bfloat16", phase, bytes=unpacked)
      elif step.copies and device.copies:
        yield Kernel("weights copied from the stack", phase, bytes=2 * 2 * d_in * d_out)


def stored(kind: str) -> float:
  """Bytes a weight."""
  return {"float32": 4, "bfloat16": 2, "int8": 1 + 2 / 64, "nf4": 0.5 + 2 / 64}[kind]


def lora(step: Step) -> Iterator[Kernel]:
  c, X, r = step.c, step.tokens, step.c.lora.rank
  drops = step.training and c.lora.dropout > 0
  for name in c.lora.targets:
    d_in, d_out = c.projections[name][0], math.prod(c.projections[name][1])
    for phase in ("forward", "again"):
      if phase == "again" and c.remat == "none":
        continue
      if drops:
        read_and_written = 2 * 2 * X * d_in
        yield Kernel("LoRA's dropout", phase, X * d_in, read_and_written, "random")
      yield product("LoRA", phase, X, d_in, r)
      if phase == "forward" or (c.remat == "layers" and name != "down"):
        yield product("LoRA", phase, X, r, d_out)._replace(bytes=2 * (X * r + 2 * X * d_out))
    yield product("LoRA", "backward", X, d_out, r)
    yield product("LoRA", "backward", r, X, d_out)
    yield product("LoRA", "backward", d_in, X, r)
    yield product("LoRA", "backward", X, r, d_in)._replace(bytes=2 * (X * r + 2 * X * d_in))
    if drops:
      yield Kernel("LoRA's dropout", "backward", bytes=(2 * 2 + 1) * X * d_in)


def attention(step: Step) -> Iterator[Kernel]:
  c, (R, T) = step.c, (step.layout.rows, step.layout.row_length)
  S, width = step.P + T, c.N * c.H
  again = c.remat != "none"

  def kernel(phase: str, products: int, size: float) -> Kernel:
    """So many products with every pair of the rows and the prompt."""
    pairs = step.P**2 + R * T * S
    return Kernel("attention", phase, 2 * products * pairs * width, size)

  rows = 2 * R * (2 * T * width + 2 * S * c.K * c.H)  # bytes of q, k, v and output
  if step.flash:
    yield kernel("forward", 2, rows)
    if again:
      yield kernel("again", 2, rows)
    yield kernel("backward", 4, 2 * rows)
    yield kernel("again", 1, 0)  # the scores, inside the backward kernel
    return
  pairs = R * T * S * c.N
  # Scores written and read in float32, probabilities written and read in bfloat16.
  yield kernel("forward", 2, rows + 12 * pairs)
  if again:  # and float32 probabilities for the softmax's gradient
    needed = 2 if c.remat == "layers" else 1
    yield kernel("again", needed, rows + (12 if needed == 2 else 10) * pairs + 4 * pairs)
  # bfloat16: gradient of probabilities, written and read; probabilities, read for v. float32:
  # probabilities read, gradient of scores written, read for q and for k.
  yield kernel("backward", 4, 2 * rows + (3 * 2 + 4 * 4) * pairs)


def elementwise(step: Step) -> Iterator[Kernel]:
  """Norms and residuals, rotation and joining with the prompt, silu; what is kept."""
  c, X = step.c, step.tokens
  heads = 4 * c.N * c.H + 6 * c.K * c.H
  yield Kernel("element-wise", "forward", bytes=2 * X * (9 * c.D + heads + 3 * c.F))
  if c.remat != "none":
    yield Kernel("element-wise", "again", bytes=2 * X * (6 * c.D + heads + 3 * c.F))
  yield Kernel("element-wise", "backward", bytes=2 * X * (11 * c.D + heads + 5 * c.F))
  if step.training:
    yield Kernel("kept activations", "forward", bytes=2 * step.kept_by_a_layer(c.remat))
    yield Kernel("kept activations", "backward", bytes=step.kept_by_a_layer(c.remat))


def encoder(step: Step) -> Iterator[Kernel]:
  """Vectors for every place of the batch's list of distinct items, and the tokens made of them."""
  items, n = step.model.items, step.layout.item_places + 1
  D, size = step.c.D, ITEMSIZE[step.compute]
  part, unit = "item encoder", "single" if size == 4 else "half"
  more = {"size": size, "unit": unit}
  layers = [items.project[m].weight.shape for m in items.modalities]
  layers += [items.hidden.weight.shape, items.out.weight.shape] if items.kind == "mlp" else []
  for i, (k, m) in enumerate(layers):
    frozen_input = i < len(items.modalities)
    yield product(part, "forward", n, k, m, **more)
    yield product(part, "backward", k, n, m, **more)
    if not frozen_input:
      yield product(part, "backward", n, m, k, **more)
    if size == 2:  # weights to bfloat16, their gradient to float32
      yield Kernel(part, "forward", bytes=6 * k * m)
      yield Kernel(part, "backward", bytes=6 * k * m)
  gathered = n * sum((4 + size) * k for k, _ in layers[: len(items.modalities)])
  gathered += 0 if items.kind == "mlp" else n * D * (4 + size)  # the learned rows
  for book_LCD in items.codebook_LCD.values():
    gathered += n * D * (4 * len(book_LCD) + size)
  parts = n * D * (len(items.modalities) + len(items.codebook_LCD))
  hidden = sum(n * m for _, m in layers[len(items.modalities) :])
  tokens = (step.tokens - step.P) * D
  moved = gathered + 2 * size * (parts + hidden) + (size + 2) * tokens
  yield Kernel(part, "forward", bytes=moved)
  yield Kernel(part, "backward", bytes=2 * moved)  # scattered: read, added to, written


def scores(step: Step) -> Iterator[Kernel]:
  """All items for every target, float32. Raises ValueError where the catalogue is projected."""
  items, Q = step.model.items, step.layout.targets
  I, D = items.identity_ID.shape  # noqa: E741
  if should_project_catalogue(Q, D):
    raise ValueError(f"{Q} targets, more than the model is wide ({D}): not counted")
  more = {"size": 4, "unit": "single"}
  tables = [(D, True), *((items.feature_IV[m].shape[1], False) for m in items.modalities)]
  for V, learned in tables:
    yield product("scores", "forward", Q, V, I, **more)
    yield product("scores", "backward", Q, I, V, **more)
    if learned:
      yield product("scores", "backward", V, Q, I, **more)
    else:  # the query, o W
      yield product("scores", "forward", Q, D, V, **more)
      yield product("scores", "backward", Q, V, D, **more)
      yield product("scores", "backward", D, Q, V, **more)
  # Weighted and added up, softmax; gradients of the scores, of every source and of its weight.
  yield Kernel("scores", "forward", bytes=4 * Q * I * (len(tables) + 3))
  yield Kernel("scores", "backward", bytes=4 * Q * I * (2 + 4 * len(tables)))


def trained(model: RecommenderModel) -> int:
  """Number of trained parameters."""
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def kept(model: RecommenderModel, layout: Layout, remat: str) -> dict[str, float]:
  """Bytes that the forward pass leaves to the backward pass beside parameters and tables: of all
  "layers", of those the attention's "pairs", and what is kept "elsewhere"."""
  graph, params, frozen = nnx.split(model, nnx.Param, ...)

  def backward(params, frozen, batch, key):
    def loss(params):
      model = nnx.merge(graph, params, frozen)
      model.backbone.config = dataclasses.replace(model.backbone.config, remat=remat)
      scores_QI = model.scores(model.hidden(batch, key))
      return cross_entropy(scores_QI, batch.target_Q, batch.weight_Q)[0]

    return jax.vjp(loss, params)[1]

  key = jax.eval_shape(lambda: jax.random.key(0))
  left = jax.eval_shape(backward, params, frozen, Packer(layout).batch(), key)
  held = Counter((x.shape, x.dtype) for x in jax.tree.leaves((params, frozen)))
  pairs = (layout.row_length, len(model.prompt_PD) + layout.row_length)
  found = dict.fromkeys(("layers", "pairs", "elsewhere"), 0.0)
  for x in jax.tree.leaves(left):
    if held[x.shape, x.dtype]:
      held[x.shape, x.dtype] -= 1
      continue
    in_layers = x.shape[:1] == (model.backbone.config.layers,)
    found["layers" if in_layers else "elsewhere"] += x.size * x.dtype.itemsize
    if in_layers and x.shape[-2:] == pairs:
      found["pairs"] += x.size * x.dtype.itemsize
  return found


def memory(step: Step) -> dict[str, float]:
  """Bytes by part of a training step."""
  c, X, params = step.c, step.tokens, 4 * trained(step.model)
  tables = nnx.state(step.model, nnx.All(Frozen, nnx.Not(Pretrained)))
  # Gradients as wide as the mlp, and weights that are copied.
  a_layer = ITEMSIZE[c.compute] * (3 * X * c.F + c.weights_per_layer)
  if c.remat != "none":
    a_layer += step.kept_by_a_layer("none")
  items = step.model.items
  n, width = step.layout.item_places + 1, (len(items.modalities) + len(items.codebook_LCD)) * c.D
  inside = ITEMSIZE[step.compute] * n * (width + width // 2) if items.kind == "mlp" else 0
  return {
    "weights": c.layers * (stored(c.weights) * c.weights_per_layer + 4 * c.D),
    "tables": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tables)),
    "trained": params,
    "gradient": params,
    "AdamW": 2 * params,
    "kept by layers": c.layers * step.kept_by_a_layer(c.remat),
    "kept elsewhere": step.kept[c.remat]["elsewhere"],
    "largest temporary": max(a_layer, inside),
  }
