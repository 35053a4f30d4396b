"""The recommender: a Llama that reads one token an item and scores the whole catalogue. Source:
MME-SID."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models import fusion
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.attention import read, visible
from mmesid_jax.models.layers.linear import dropout, split
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.parallel.variables import Pretrained


class RecommenderModel(nnx.Module):
  """Prompt of P vectors, item tokens, S response tokens behind every target (0 = none).

  `pretrained`: the backbone's weights are shapes until a checkpoint fills them; `text`: so are the
  vectors of prompt and response, which are learned otherwise. `item_dropout` zeroes elements of the
  item tokens; the backbone has its own rates.
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
    pretrained: bool = False,
    text: bool = False,
    rngs: nnx.Rngs,
  ):
    self.items, self.gates = items, gates
    self.backbone = (Llama.unfilled if pretrained else Llama)(backbone, rngs=rngs)

    def table(rows):
      if text:
        return Pretrained(jnp.zeros((rows, backbone.D)))
      return nnx.Param(jax.random.normal(rngs.params(), (rows, backbone.D)) * 0.02)

    self.prompt_PD = table(P)
    self.response_SD = table(S) if S else None
    self.item_dropout = item_dropout

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """o [Q, D]: the last hidden state of every target's own prompt."""
    item_key, backbone_key = split(key, 2)
    item_ND = self.items(batch.item_N)  # once per distinct item
    x_RTD = constrain(item_ND, None, None)[batch.slot_RT]
    if self.response_SD is not None:
      response_RTD = self.response_SD[...][batch.response_RT]
      x_RTD = jnp.where(batch.branch_RT[..., None] > 0, response_RTD, x_RTD)
    x_RTD = dropout(x_RTD, self.item_dropout, item_key)
    P = len(self.prompt_PD[...])
    x_GXD = self.backbone(
      self.prompt_PD[...], x_RTD, batch.position_RT, visible(batch, P), backbone_key
    )
    return read(x_GXD, P, batch.read_Q)

  @property
  def num_items(self) -> int:
    return self.items.num_items

  def scorer(self, o_QD: jax.Array, *, project: bool | None = None) -> Scorer:
    """Scores of all items; item 0 is padding and no candidate. project: as in `fusion.scorer`."""
    return fusion.scorer(o_QD, self.items, self.gates.weights(), project=project)

  def item_vectors(self) -> jax.Array:
    """[I, D]: o . item_vectors()[i] is the score of item i."""
    return fusion.item_vectors(self.items, self.gates.weights())

  def scores(self, o_QD: jax.Array) -> jax.Array:
    """[Q, I], column i = item i; column 0 is padding and no candidate."""
    return self.scorer(o_QD).all()
