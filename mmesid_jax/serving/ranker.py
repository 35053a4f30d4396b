"""Ranks the catalogue for histories of item ids: Ranker.load(workdir).top_items(histories).

It needs no data, only a workdir's config.json and artifacts. On several devices, where the
catalogue is large: load and rank within `jax.set_mesh`.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.saved import read_config
from mmesid_jax.data.batches import batch_sequences, with_histories
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout, Pieces, with_rows_for
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import model_catalogue
from mmesid_jax.models.blend import ServableModel, score_parts
from mmesid_jax.models.generate.generated_ranking import GENERATED, GeneratedRanking
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.serving.served_model import KINDS, load_model
from mmesid_jax.stages.new_item_codes import append_new_items
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.sequence_task import evaluation_layout

BATCHES = (1, 8, 32)  # histories in one call to the device; more are answered batch after batch
HISTORIES_PER_ROW, ROW_USED = 8, 0.9  # of short histories; the share of a row that they fill
FEW_CALLS = 2  # with few rows, before one call with a row for each history is faster
SHORT_ROW = 32  # tokens of the row of one short history


class TopItems(NamedTuple):
  """The best A items for each of E histories, best first.

  Where fewer than A can be recommended, the last scores are -inf and their items mean nothing.
  """

  item_EA: np.ndarray  # int32
  score_EA: np.ndarray  # float32
  part_EAO: np.ndarray | None = None  # float32, summands of the scores by source, if asked for


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static shape of a batch of histories. Each shape compiles once."""

  layout: Layout
  history: int  # items of the longest history, at least


class Ranked(NamedTuple):
  """The answer to a batch, and the hidden states that it came from, on the device."""

  item_QA: jax.Array
  score_QA: jax.Array
  states: Any  # as the model's `hidden` gives them


@functools.partial(jax.jit, static_argnames=("graph", "top_k"))
def rank_items(
  graph: nnx.GraphDef,
  state: nnx.State,
  item_ID: jax.Array,
  batch: Batch,
  offered_2: jax.Array,  # first item that may be recommended, and the one after the last
  repeat: jax.Array,  # bool, whether items of the history may be
  *,
  top_k: int,
) -> Ranked:
  """The best items for the histories of a batch."""
  model = nnx.merge(graph, state)
  o_QD = model.hidden(batch)
  score_QI = model.score_states(o_QD, batch, item_ID)
  item_I, (first, stop) = jnp.arange(score_QI.shape[1]), offered_2
  offered_I = (item_I >= first) & (item_I < stop)
  score_QI = jnp.where(offered_I, score_QI, -jnp.inf)
  excluded_QX = jnp.where(repeat, 0, batch.history_QX)
  score_QI = score_QI.at[jnp.arange(len(score_QI))[:, None], excluded_QX].set(-jnp.inf)
  score_QA, item_QA = sharding.top_k(score_QI, top_k)
  return Ranked(item_QA, score_QA, o_QD)


@functools.partial(jax.jit, static_argnames="graph")
def _explain(graph: nnx.GraphDef, state: nnx.State, batch: Batch, ranked: Ranked) -> jax.Array:
  """Summands of the scores, [Q, A, O]. Apart from `rank_items`: most answers need none."""
  model = nnx.merge(graph, state)
  return score_parts(model, ranked.states, batch, ranked.item_QA, ranked.score_QA)


@functools.partial(jax.jit, static_argnames="graph")
def _static_table(graph: nnx.GraphDef, state: nnx.State) -> jax.Array:
  return nnx.merge(graph, state).static_table()


@functools.partial(jax.jit, static_argnames="graph")
def _static_query(graph: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
  model = nnx.merge(graph, state)
  return model.static_query(model.hidden(batch), batch)


class Ranker:
  """A trained model, ready to rank. Make one with `load`.

  `model`: with all items that were added. `sources`: names of the summands of a score. `offered`:
  the ids of the items that may be recommended. `files`: the artifacts that `load` read.
  """

  files: Sequence[pathlib.Path] = ()

  def __init__(self, model: ServableModel, config: ConfigDict, path: pathlib.Path):
    """config: of the model's training. path: the workdir, which messages name."""
    self.config, self.path = config, path
    self.sources = model.sources
    self.layout: Layout = RECOMMENDER.layout(config)
    self._set_model(model)

  @property
  def kind(self) -> str:
    """Which of SERVED it serves."""
    return next(name for name, kind in KINDS.items() if type(self.model) is kind)

  def _set_model(self, model: ServableModel) -> None:
    self.model = model
    self.num_items = model.num_items
    self.offered = range(1, self.num_items + 1)
    self._place(model)

  def _place(self, model: ServableModel) -> None:
    self._split(model)
    self._item_ID = model_catalogue(self._graph, self._state)

  def _split(self, model: ServableModel) -> None:
    placed = nnx.clone(model)  # shares the arrays; items are added to `model`
    place_model(placed)
    self._graph, self._state = nnx.split(placed)  # once: it costs more than a small batch

  def use_changed_tables(self) -> None:
    """Ranks with the tables that `model` has now, where only those changed that `rank_items` reads
    and the vectors of the items do not depend on."""
    self._split(self.model)

  @property
  def parts(self) -> tuple[nnx.GraphDef, nnx.State, jax.Array | None]:
    """The first three arguments of `rank_items`."""
    return self._graph, self._state, self._item_ID

  @classmethod
  def load(cls, workdir: str | pathlib.Path, *, model: str | None = None) -> "Ranker":
    """Reads config.json, recommender.safetensors and, for the blend, blend.safetensors and the
    counts of `mmesid_jax.refresh` in workdir.

    model: "network" for the recommender alone, "blend" for its sum with counts and content,
    "generated" for the items whose semantic IDs it generates, "summed" for the sum of these two;
    None = the blend where there is one, else what was trained. Raises UserError.
    """
    path = pathlib.Path(workdir)
    config = read_config(path)
    loaded = load_model(path, config, model)
    ranker = cls(loaded.model, config, path)
    ranker.files = loaded.files
    return ranker

  def add_items(self, source: str | pathlib.Path | Mapping[str, np.ndarray]) -> range:
    """Appends items that training never saw, so that they can be recommended and be part of
    histories. Returns their ids, which follow the largest so far.

    A modality that is left out, such as the collaborative one of a new item, is read as the mean of
    the training items and has no weight in the scores; the learned row has none either.

    Args:
      source: a file that `mmesid_jax.semantic_ids encode` wrote, or feature rows by modality
        ({"text": [E, V]}: one row for each new item, none for padding).

    Raises UserError for a source that does not fit the model.
    """
    model = append_new_items(self.model, self.path, self.config, source)
    added = range(self.num_items + 1, model.num_items + 1)
    self._set_model(model)
    return added

  def restrict_to(self, items: range) -> None:
    """Recommends only these items until the next call, or until items are added.

    Use it for new items, which seldom come up beside items of which more is known. Raises UserError
    for a range that is empty or leaves the catalogue.
    """
    if items.step != 1 or not 1 <= items.start < items.stop <= self.num_items + 1:
      raise UserError(f"{items}: expected consecutive items from 1 to {self.num_items}")
    self.offered = items
    if isinstance(self.model, GeneratedRanking):  # a search among these items alone
      self._place(self.model.restrict_to(items))

  def why_nothing(self) -> str:
    """The reason of an empty answer."""
    if self.kind == "generated":
      return (
        "the history holds all items that the search found; repeat takes them too, and a larger "
        f"evaluation.beams in {self.path / 'config.json'} finds more"
      )
    return f"the history holds all {len(self.offered):,} items that may be; repeat takes them too"

  def shape_for(self, lengths: np.ndarray) -> Shape:
    """The fastest shape for `top_items` with very many histories of these lengths, int [E]: batches
    as large as those of the evaluation."""
    layout = evaluation_layout(self.layout, self.config.evaluation.targets)
    read = np.minimum(lengths, layout.longest_history)
    pieces = Pieces(np.arange(len(read)), np.zeros_like(read), read + 1, read)
    rows = with_rows_for(layout, pieces, sharding.shard_count("batch"))
    return Shape(rows, int(lengths.max(initial=1)))

  def top_items(
    self,
    histories: Sequence[Sequence[int]],
    top_k: int = 10,
    *,
    repeat: bool = False,
    reasons: bool = False,
    shape: Shape | None = None,
    offered: range | None = None,
  ) -> TopItems:
    """The top_k next items for each history (item ids, oldest first; may be empty), with the parts
    of the scores if `reasons`.

    Items of the history are left out unless `repeat`, so fewer may be left. Of a history longer
    than a row the newest items are read.

    Args:
      shape: from `shape_for`, for many calls with very many histories, or from `small_shape`.
      offered: the items that may be recommended, instead of those of `restrict_to`.

    Raises UserError for an item id that is not in the catalogue, a top_k out of range, and scores
    that are not finite.
    """
    offered = self.offered if offered is None else offered
    self.check_top_k(top_k)
    arrays = [self._checked(i, history) for i, history in enumerate(histories)]
    if shape is None:
      shape = self.small_shape([len(a) for a in arrays])
    E, sources = len(arrays), len(self.sources)
    top = TopItems(
      np.zeros((E, top_k), np.int32),
      np.zeros((E, top_k), np.float32),
      np.zeros((E, top_k, sources), np.float32) if reasons else None,
    )
    asked = np.array([offered.start, offered.stop], np.int32), np.array(repeat)

    def answer(batch: Batch) -> TopItems:
      ranked = rank_items(*self.parts, batch, *asked, top_k=top_k)
      parts = _explain(self._graph, self._state, batch, ranked) if reasons else None
      return TopItems(ranked.item_QA, ranked.score_QA, parts)

    answers = ((place_Q, answer(batch)) for place_Q, batch in _batches(arrays, shape))
    for place_Q, of_batch in _one_ahead(answers):
      for all_EA, some_QA in zip(top, jax.device_get(of_batch), strict=True):
        if all_EA is not None:
          all_EA[place_Q] = some_QA[: len(place_Q)]
    if len(wrong := np.flatnonzero(~(top.score_EA < np.inf).all(1))):
      raise UserError(
        f"{self.path}: the scores of history {wrong[0] + 1} are not finite; the model has "
        "diverged, train it again with a lower learning rate"
      )
    return top

  def static_table(self) -> np.ndarray:
    """Vectors of the items for a nearest-neighbor index, float32 [I, V], row 0 unused.

    The product of a row and one of `static_queries` is the item's score without the terms that
    depend on the history and the item together: transitions, repeats and reranking of a blend.
    Raises UserError for a model whose scores are no products.
    """
    self._check_products()
    return np.asarray(_static_table(self._graph, self._state))[: self.num_items + 1]

  def static_queries(
    self, histories: Sequence[Sequence[int]], *, shape: Shape | None = None
  ) -> np.ndarray:
    """Vectors of histories for the index, float32 [E, V]; shape: as in `top_items`. Raises
    UserError as `static_table`, and for an item id that is not in the catalogue."""
    self._check_products()
    arrays = [self._checked(i, history) for i, history in enumerate(histories)]
    if shape is None:
      shape = self.small_shape([len(a) for a in arrays])
    if not arrays:
      return self.static_table()[:0]
    found = []
    answers = (
      (place_Q, _static_query(self._graph, self._state, batch))
      for place_Q, batch in _batches(arrays, shape)
    )
    for place_Q, query_QV in _one_ahead(answers):
      found.append(np.asarray(query_QV)[: len(place_Q)])  # histories keep their order
    return np.concatenate(found)

  def _check_products(self) -> None:
    if self.kind in GENERATED:
      raise UserError(f"the model {self.kind!r} has no vectors; take the network or the blend")

  def small_shape(self, lengths: Sequence[int]) -> Shape:
    """A shape for histories of these lengths: the smallest of BATCHES that holds them, in few rows
    if they are short."""
    most = next((size for size in BATCHES if size >= len(lengths)), BATCHES[-1])
    few = math.ceil(most / HISTORIES_PER_ROW)
    read_E = np.minimum(np.asarray(lengths[:most], int), self.layout.longest_history)
    tokens = self.layout.tokens(read_E + 1, np.ones_like(read_E)).sum()
    row_length = self.layout.row_length
    in_few_rows = tokens <= FEW_CALLS * ROW_USED * few * row_length
    if most == 1 and tokens <= SHORT_ROW:
      row_length = min(row_length, SHORT_ROW)

    def places(number: int, axis: str) -> int:
      return number + -number % sharding.shard_count(axis)

    rows = min(places(few if in_few_rows else most, "batch"), self.layout.rows)
    layout = dataclasses.replace(self.layout, rows=rows, row_length=row_length)
    longest = max(lengths, default=0)
    return Shape(
      evaluation_layout(layout, places(most, "targets")), 1 << max(longest, 1).bit_length()
    )

  @property
  def largest_top_k(self) -> int:
    """The most items of an answer."""
    most = len(self.offered)
    return min(most, self.model.beams) if self.kind == "generated" else most

  def check_top_k(self, top_k: int) -> None:
    """Raises UserError for a number that is not whole, and for more items than can be recommended,
    `largest_top_k`."""
    if not is_whole_number(top_k) or not 1 <= top_k <= len(self.offered):
      raise UserError(f"top_k={top_k}: expected a number from 1 to {len(self.offered)}")
    if self.kind == "generated" and top_k > (beams := self.model.beams):
      raise UserError(
        f"top_k={top_k}: the search keeps {beams} IDs; ask for at most as many, or write a larger "
        f"evaluation.beams into {self.path / 'config.json'}"
      )

  def _checked(self, index: int, history: Sequence[int]) -> np.ndarray:
    try:
      array = np.asarray(history, np.int64).reshape(-1)
    except OverflowError:  # a number that int64 does not hold
      unknown = [max(history, key=abs)]
    else:
      unknown = array[(array < 1) | (array > self.num_items)]
    if len(unknown):
      raise UserError(
        f"history {index + 1}: item {unknown[0]} is not in the catalogue (1 to {self.num_items})"
      )
    return array.astype(np.int32)


def _batches(arrays: Sequence[np.ndarray], shape: Shape) -> Iterator[tuple[np.ndarray, Batch]]:
  """Yields the places of a batch's histories, and the batch on the device."""
  newest = [a[-shape.layout.longest_history :] for a in arrays]
  sequences = [np.append(a, 0) for a in newest]  # the item to be predicted is not known: 0
  for batch in batch_sequences(sequences, shape.layout, [len(a) for a in newest]):
    place_Q = batch.piece_Q[batch.weight_Q > 0]  # places in use are the first
    batch = with_histories(batch, arrays, shape.history)
    yield place_Q, sharding.device_put_batch(batch)


def is_whole_number(x: object) -> bool:
  """Whether it is an int, of Python or numpy; no bool is."""
  return isinstance(x, int | np.integer) and not isinstance(x, bool)


def _one_ahead(answers: Iterator) -> Iterator:
  """Yields each answer after the next one was requested, so that a device computes while the next
  batch is packed."""
  waiting = None
  for answer in answers:
    if waiting is not None:
      yield waiting
    waiting = answer
  if waiting is not None:
    yield waiting
