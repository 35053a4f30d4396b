"""The memory that a step takes for its gradient beside its arguments, from the traced program.

Shapes are enough: nothing is computed or allocated.
"""

import itertools
from collections import Counter
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend import core

from mmesid_jax.training.step import Loss

# XLA frees later than the trace would allow, and copies arrays that its kernels need in another
# layout: on CPUs it held about this many times what the trace says beside the kept activations.
SLACK = 1.5


class Activations(NamedTuple):
  """Bytes. kept: what the forward pass leaves to the backward pass. transient: the most that exists
  beside it at any time."""

  kept: int
  transient: int


# Equations that only call another program, which is written out in their place.
CALLS = frozenset("jit pjit closed_call checkpoint remat2 custom_vjp_call custom_jvp_call".split())
# What XLA computes inside the kernel that reads it, without writing it to memory,
FUSED = frozenset(
  "abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf "
  "erf_inv erfc exp exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le log log1p "
  "logistic lt max min mul name ne neg not or pow rem reshape rev round rsqrt select_n shift_left "
  "shift_right_arithmetic shift_right_logical sign sin slice split sqrt square squeeze "
  "stop_gradient sub tan tanh transpose xor".split()
)
# unless it costs much and has several readers,
COSTLY = frozenset(
  "cos div erf erf_inv erfc exp exp2 expm1 log log1p logistic pow rem rsqrt sin sqrt tan "
  "tanh".split()
)
# or one that is none of these kernels.
READERS = FUSED | frozenset(
  "argmax argmin concatenate dynamic_update_slice pad reduce_and reduce_max reduce_min reduce_or "
  "reduce_sum".split()
)
# Operations that may overwrite an argument that is not read again.
IN_PLACE = FUSED | {"dynamic_update_slice", "scatter", "scatter-add"}


def activation_bytes(loss: Loss, model: nnx.Module, batch: Any) -> Activations:
  """Activations of the gradient of the loss, without parameters, tables and the gradient itself.

  model and batch may be shapes. `kept` is what jax hands to the backward pass. `transient` rests on
  a model of the compiler: equations run in the order of the trace, a result is held until its last
  reader has run, the sets above say what is written to memory at all, and SLACK makes up for the
  rest. Together with the
  gradient they are .83 to 1.15 of XLA's own figure (tests/planning/test_activations.py).
  """
  graph, params, frozen = nnx.split(model, nnx.Param, ...)
  key = jax.eval_shape(lambda: jax.random.key(0))

  def loss_of(params, *rest):
    frozen, batch, key = rest
    return loss(nnx.merge(graph, params, frozen), batch, key)[0][0]

  def residuals(params, *rest):
    return jax.vjp(lambda params: loss_of(params, *rest), params)[1]

  forward = jax.make_jaxpr(residuals)(params, frozen, batch, key).jaxpr
  made = {v for equation in forward.eqns for v in equation.outvars}
  kept = sum(map(_bytes, made.intersection(_variables(forward.outvars))))
  whole = peak_bytes(jax.make_jaxpr(jax.grad(loss_of))(params, frozen, batch, key).jaxpr)
  return Activations(kept, max(int(SLACK * (whole - kept)), 0))


def peak_bytes(jaxpr: core.Jaxpr) -> int:
  """The most bytes of results that are held at once, without arguments and what is returned."""
  program = _Program(jaxpr)
  memory = program.in_memory()
  read: dict[int, set[int]] = {}  # of a value: those of memory that it is made from
  last: dict[int, int] = {}
  for i, step in enumerate(program.steps):
    sources = {v for x in step.arguments for v in read.get(x, {x})}
    last |= dict.fromkeys(sources, i)
    read |= {v: {v} if v in memory else sources for v in step.results}
  ends: Counter[int] = Counter()
  held = most = 0
  for i, step in enumerate(program.steps):
    new = memory.intersection(step.results) - program.outputs
    if step.name in IN_PLACE:
      held -= ends.pop(i, 0)
    held += sum(program.bytes[v] for v in new)
    for v in new:
      ends[last.get(v, i)] += program.bytes[v]
    most = max(most, held + max(map(peak_bytes, step.bodies), default=0))
    held -= ends.pop(i, 0)
  return most


class _Step(NamedTuple):
  """An equation: its arguments and results as numbers, and the bodies of a loop."""

  name: str
  arguments: list[int]
  results: list[int]
  bodies: list[core.Jaxpr]


class _Program:
  """A jaxpr with the programs that it calls written out.

  steps: its equations. bytes: the size of each result, by number. outputs: the numbers of those
  that it returns.
  """

  def __init__(self, jaxpr: core.Jaxpr):
    self.steps: list[_Step] = []
    self.bytes: dict[int, int] = {}
    self._numbers = itertools.count()
    given = {v: next(self._numbers) for v in (*jaxpr.invars, *jaxpr.constvars)}
    self.outputs = {*self._write(jaxpr, given)}

  def _write(self, jaxpr: core.Jaxpr, number: dict[core.Var, int]) -> list[int]:
    """Appends the jaxpr's steps; returns the numbers of its outputs. `number` holds the numbers of
    its arguments, and gets those of its results."""

    def numbers(atoms) -> list[int]:
      # A literal has no number that anything else has.
      return [number[x] if isinstance(x, core.Var) else next(self._numbers) for x in atoms]

    for equation in jaxpr.eqns:
      inner = list(core.jaxprs_in_params(equation.params))
      arguments = numbers(equation.invars)
      if equation.primitive.name in CALLS:
        constants = {v: next(self._numbers) for v in inner[0].constvars}
        within = dict(zip(inner[0].invars, arguments, strict=True)) | constants
        results = self._write(inner[0], within)
      else:
        results = [next(self._numbers) for _ in equation.outvars]
        self.bytes |= dict(zip(results, map(_bytes, equation.outvars), strict=True))
        self.steps.append(_Step(equation.primitive.name, arguments, results, inner))
      number |= dict(zip(equation.outvars, results, strict=True))
    return numbers(jaxpr.outvars)

  def in_memory(self) -> set[int]:
    """The numbers of the results that are written to memory."""
    readers = Counter(v for step in self.steps for v in {*step.arguments})
    found = {*self.outputs}
    for step in self.steps:
      if step.name not in FUSED:
        found.update(step.results)
      if step.name in COSTLY:
        found.update(v for v in step.results if readers[v] > 1)
      if step.name not in READERS:
        found.update(step.arguments)
    return found & self.bytes.keys()


def _variables(atoms) -> list[core.Var]:
  return [x for x in atoms if isinstance(x, core.Var)]


def _bytes(v: core.Var) -> int:
  if jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.prng_key):
    return 16 * v.aval.size  # four words, of the largest generator
  return v.aval.size * v.aval.dtype.itemsize
