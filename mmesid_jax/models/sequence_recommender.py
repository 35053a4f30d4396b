"""The recommender: a Llama that reads one token per item and scores all items. Source: MME-SID."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models import fusion
from mmesid_jax.models.catalogue_scores import ProductScores, Scorer
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.linear import dropout, split_key
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.models.packed_rows import read_targets, visibility_mask
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.parallel.variables import Pretrained


class RecommenderModel(ProductScores, nnx.Module):
  """Reads a prompt, one token per item, and response tokens after every target's history.

  Args:
    items: gives every item its token.
    gates: weights of the sources of an item's score.
    backbone: sizes and options of the Llama.
    P: number of prompt vectors; S: number of response vectors, 0 = none.
    item_dropout: rate on elements of the item tokens; the backbone has its own rates.
    token_scale, state_scale: factors of the item tokens that the backbone reads, and of the hidden
      states that score items. Pretrained weights expect tokens and give states of another size
      than small models do.
    generate: scores the codes of the next item's semantic ID, None = not wanted.
    from_checkpoint: parts that the caller fills from a checkpoint: "backbone", whose weights are
      only shapes until then, and "prompt", the vectors of prompt and response, which stay as they
      are in the checkpoint. Parts that are not named are initialized at random and trained.
  """

  def __init__(
    self,
    items: ItemEncoder,
    gates: fusion.FrequencyFusion,
    backbone: LlamaConfig,
    *,
    P: int,
    S: int,
    item_dropout: float,
    token_scale: float = 1.0,
    state_scale: float = 1.0,
    generate: GenerativeHead | None = None,
    from_checkpoint: Collection[str] = (),
    rngs: nnx.Rngs,
  ):
    if unknown := set(from_checkpoint) - {"backbone", "prompt"}:
      raise ValueError(f"from_checkpoint={sorted(unknown)}: expected some of backbone, prompt")
    self.items, self.gates, self.generate = items, gates, generate
    build_llama = Llama.with_abstract_weights if "backbone" in from_checkpoint else Llama
    self.backbone = build_llama(backbone, rngs=rngs)

    def token_vectors(count):
      if "prompt" in from_checkpoint:
        return Pretrained(jnp.zeros((count, backbone.D)))
      return nnx.Param(jax.random.normal(rngs.params(), (count, backbone.D)) * 0.02)

    self.prompt_PD = token_vectors(P)
    self.response_SD = token_vectors(S) if S else None
    self.item_dropout = item_dropout
    self.token_scale, self.state_scale = token_scale, state_scale

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Hidden states [Q, D], float32, from which the targets are predicted; key: for dropout."""
    return (
      read_targets(self._states(batch, key), self.prompt_length, batch.read_Q) * self.state_scale
    )

  def code_states(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Hidden states [Q, L, D], float32, from which the targets' codes are predicted, of which the
    first are those of `hidden`. The batch spells the targets: it has L - 1 code tokens for each, or
    more, which are not read."""
    first_Q, later = batch.code_read_Q, self.generate.levels - 1
    reads = [batch.read_Q, *(jnp.where(first_Q > 0, first_Q + k, 0) for k in range(later))]
    x_GJD = self._states(batch, key)
    states = [read_targets(x_GJD, self.prompt_length, read_Q) for read_Q in reads]
    return jnp.stack(states, axis=1) * self.state_scale

  @property
  def prompt_length(self) -> int:
    """Number of prompt tokens."""
    return len(self.prompt_PD[...])

  def tokens(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Vectors [R, T, D] of the rows' tokens, as the backbone reads them."""
    item_ED = self.items(batch.item_E)  # computed once per distinct item
    x_RTD = constrain(item_ED, None, None)[batch.slot_RT] * self.token_scale
    if self.response_SD is not None:
      response_RTD = self.response_SD[...][batch.response_RT]
      x_RTD = jnp.where(batch.branch_RT[..., None] > 0, response_RTD, x_RTD)
    if self.generate is not None:
      S = 0 if self.response_SD is None else len(self.response_SD[...])
      spelled_RTD = self.generate.spelled_tokens(self.generate.codebook(self.items), batch, S)
      x_RTD = jnp.where(batch.spelled_RT[..., None] > 0, spelled_RTD * self.token_scale, x_RTD)
    return dropout(x_RTD, self.item_dropout, key)

  def _states(self, batch: Batch, key: jax.Array | None) -> jax.Array:
    item_key, backbone_key = split_key(key, 2)
    mask_RTY = visibility_mask(batch, self.prompt_length)
    x_RTD = self.tokens(batch, item_key)
    return self.backbone(self.prompt_PD[...], x_RTD, batch.position_RT, mask_RTY, backbone_key)

  @property
  def num_items(self) -> int:
    """Number of items, without padding."""
    return self.items.num_items

  def scorer(self, o_QD: jax.Array, *, project: bool | None = None) -> Scorer:
    """Scorer of all items; item 0 is padding, not a candidate. project: as in `fusion_scorer`."""
    return fusion.fusion_scorer(o_QD, self.items, self.gates.weights(), project=project)

  def item_vectors(self) -> jax.Array:
    """Vectors [I, D]; the score of item i is o . item_vectors()[i]."""
    return fusion.item_vectors(self.items, self.gates.weights())

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of the summands of a score, as reasons show them."""
    return ("identity", *self.items.modalities)

  def contributions(self, o_QD: jax.Array, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items, in the order of `sources`; o_QD: hidden states.
    The batch is not read."""
    return fusion.score_contributions(self.items, self.gates.weights(), o_QD, item_QA)

  def scores(self, o_QD: jax.Array) -> jax.Array:
    """Scores [Q, I], column i = item i; column 0 is padding, not a candidate."""
    return self.scorer(o_QD).score_all()
