"""Letters at the end of an array's name: all in one legend, and true of the arrays themselves."""

import ast
import dataclasses
import pathlib
import re
import sys

import generative
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mmesid_jax.models
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.evaluation.geometry import principal_plane
from mmesid_jax.losses.next_item import chunked_cross_entropy, sampled_cross_entropy
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models.fusion import FrequencyFusion, score_contributions
from mmesid_jax.models.generate.decoder import generate_items, score_all_items
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.kmeans import kmeans

PACKAGE = pathlib.Path(mmesid_jax.__file__).parent
LEGEND = re.findall(r"^  ([A-Z])  \w", mmesid_jax.models.__doc__, re.MULTILINE)
ARRAY = re.compile(r"_?[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*|[0-9]+[A-Z][A-Z0-9]*)")  # x_RTD, place_E2


def names(tree: ast.AST):
  """Names of variables, arguments, attributes and functions, each with its line."""
  for node in ast.walk(tree):
    for field in ("id", "arg", "attr", "name"):
      if isinstance(name := getattr(node, field, None), str):
        yield name, getattr(node, "lineno", 0)


def test_every_letter_is_in_the_legend_once_and_every_letter_of_the_legend_is_used():
  assert sorted(set(LEGEND)) == LEGEND
  used, unknown = set(), []
  for file in sorted(PACKAGE.rglob("*.py")):
    for name, line in names(ast.parse(file.read_text())):
      match = ARRAY.fullmatch(name)
      letters = match[1] if match else name if re.fullmatch("[A-Z]", name) else ""
      used |= set(letters)
      if extra := {x for x in letters if not x.isdigit()} - set(LEGEND):
        unknown.append(f"{file.relative_to(PACKAGE)}:{line} {name}: {sorted(extra)}")
  assert unknown == []
  assert set(LEGEND) <= used


class Shapes:
  """Collects, while active, calls of the package whose arrays do not have the axes in their names:
  within one call a letter is one size, and a digit is that size."""

  def __init__(self):
    self.calls, self.faults = set(), set()

  def __enter__(self):
    sys.setprofile(self._on_event)
    return self

  def __exit__(self, *_):
    sys.setprofile(None)

  def _on_event(self, frame, event, argument):
    code = frame.f_code
    if event != "return" or not code.co_filename.startswith(str(PACKAGE)):
      return
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in frame.f_locals.items():
      match = ARRAY.fullmatch(name)
      if not match or not isinstance(value, np.ndarray | jax.Array):
        continue
      self.calls.add(code.co_qualname)
      where = f"{pathlib.Path(code.co_filename).name} {code.co_qualname}: {name} {value.shape}"
      if value.ndim != len(match[1]):
        self.faults.add(where)
        continue
      for letter, size in zip(match[1], value.shape, strict=True):
        known, other = sizes.setdefault(letter, (size, name))
        if size != known or (letter.isdigit() and size != int(letter)):
          self.faults.add(f"{where}, but {letter} is {known} in {other}")


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def sequence_models(response: int):
  rngs, rng = nnx.Rngs(0), np.random.default_rng(0)
  features = {"text": normal(31, 5), "visual": normal(31, 6)}
  codes = {m: rng.integers(0, 4, (31, 3)) for m in features}
  books = {m: normal(3, 4, 12) for m in features}
  items = ItemEncoder(features, codes, books, D=12, kind="mlp", rngs=rngs)
  gates = FrequencyFusion(np.arange(31), 2, kind="frequency", temperature=1.0, rngs=rngs)
  lora = LoRAConfig(rank=2, alpha=4.0)
  llama = LlamaConfig(layers=2, D=12, F=20, N=4, K=2, H=6, lora=lora)
  sasrec = SASRec(30, D=12, layers=1, heads=2, positions=17, rate=0.0, rngs=rngs)
  model = RecommenderModel(items, gates, llama, P=3, S=response, item_dropout=0.0, rngs=rngs)
  return model, sasrec


def next_item(response: int) -> None:
  layout = Layout(rows=2, row_length=17, targets=8, response=response)
  batch = next(iter(batch_sequences([np.arange(1, 6), np.arange(3, 7)], layout, [2, 3])))
  model, sasrec = sequence_models(response)
  for one in (model, sasrec) if response == 0 else (model,):
    scorer = one.scorer(one.hidden(batch, jax.random.key(0)))
    assert scorer.score_all().shape == (8, 31)
    chunked_cross_entropy(scorer, batch.target_Q, batch.weight_Q, 7)
    sampled_cross_entropy(scorer, batch.target_Q, batch.weight_Q, jnp.arange(1, 10), jnp.zeros(9))
  weight_IO = model.gates.weights()
  score_contributions(model.items, weight_IO, model.hidden(batch), jnp.ones((8, 5), jnp.int32))


def generation() -> None:
  model, sequences = generative.recommender(2), generative.histories([4, 2])
  layout = Layout(rows=2, row_length=32, targets=8, response=2)
  (batch,) = batch_sequences(sequences, layout, [3, 1])
  (spelled,) = batch_sequences(sequences, dataclasses.replace(layout, codes=3))
  graph, state = nnx.split(model)

  def work(state, batch, spelled):
    model = nnx.merge(graph, state)
    generate_items(model, batch, 5, batch.history_QX)
    score_all_items(model, batch)
    codebook, h_QLD = model.generate.codebook(model.items), model.code_states(spelled)
    model.generate.item_log_probability(codebook, h_QLD, spelled.target_Q)

  jax.eval_shape(work, state, batch, spelled)


def semantic_ids(grid: bool) -> None:
  config = QuantizerConfig(levels=3, codes=4, sinkhorn_epsilon=0.01)
  widths = {"collaborative": 5, "text": 6}
  model = MMRQVAE(widths, hidden=(8,), D=7, quantizer=config, grid=grid, rngs=nnx.Rngs(0))
  options = {"reconstruction": "both", "bandwidths": (0.5,), "alignment": "info_nce"}
  weights = {f"{name}_weight": 1.0 for name in ("reconstruction", "quantization", "alignment")}
  features = {m: normal(9, V) for m, V in widths.items()}
  semantic_id_loss(model, features, temperature=0.1, **options, **weights)
  assert model.by_modality["text"].quantizer.codebook_LCD.shape == (3, 4, 7)


def points() -> None:
  kmeans(normal(50, 6), 4, balanced=True)
  principal_plane(normal(50, 6))


@pytest.mark.parametrize(
  ("work", "called"),
  [
    (
      lambda: jax.eval_shape(lambda: next_item(0)),
      {"Attention.__call__", "Block.__call__", "apply_rope", "score_contributions"},
    ),
    (
      lambda: jax.eval_shape(lambda: next_item(2)),
      {"RecommenderModel._states", "_sum_of_exponentials.<locals>.add_chunk"},
    ),
    (
      lambda: jax.eval_shape(lambda: semantic_ids(False)),
      {"ResidualQuantizer.__call__", "mmd", "info_nce", "sinkhorn"},
    ),
    (lambda: jax.eval_shape(lambda: semantic_ids(True)), {"FiniteScalarQuantizer.__call__"}),
    (
      generation,
      {"beam_search", "best_items", "exact_scores", "Attention.extend", "last_read"}
      | {"GenerativeHead.scores", "GenerativeHead.item_log_probability"},
    ),
    (points, {"balanced_assignment", "principal_plane", "squared_distances"}),
  ],
  ids=["next_item", "response", "residual", "grid", "generation", "points"],
)
def test_arrays_have_the_axes_in_their_names(work, called):
  with Shapes() as shapes:
    work()
  assert shapes.faults == set()
  assert called <= shapes.calls
