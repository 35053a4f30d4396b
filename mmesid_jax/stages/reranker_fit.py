"""Fits the reranker of the blend on the validation users whose target is among the candidates.

Loss: softmax cross-entropy of the target among the candidates. Several rerankers are fitted from
different starts and averaged. They are small, and the order of their data is fixed, so the same
candidates give the same reranker.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.evaluation.evaluator import Evaluator, model_catalogue
from mmesid_jax.models.blend import BlendModel
from mmesid_jax.models.layers.reranker import RerankerParams, average, rerank
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import constrain

HIDDEN = 16
MEMBERS = 4
EPOCHS = 12
BATCH = 256
LEARNING_RATE = 0.01
WEIGHT_DECAY = 1e-3
FEWEST = 200  # users to fit on, half of them in each half
NEW_SHARE = 0.05  # of the items, to learn what to do with new ones
VERSION = 2  # raised when the features of candidates or the fit change
RERANKER_NUMBERS = [VERSION, HIDDEN, MEMBERS, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY]
RERANKER_NUMBERS += [FEWEST, NEW_SHARE]


class Examples(NamedTuple):
  """Candidates of the users whose target is among them."""

  user_N: np.ndarray  # int32, as the evaluator numbers them
  place_N: np.ndarray  # int32, of the target
  score_NK: np.ndarray  # float32, the sums
  feature_NKF: np.ndarray  # float32

  def take(self, chosen_N: np.ndarray) -> "Examples":
    """Those where `chosen_N`, bool [N], is True."""
    return Examples(*(x[chosen_N] for x in self))

  def joined(self, others: "Examples") -> "Examples":
    """These, and then the others."""
    return Examples(*map(np.concatenate, zip(self, others, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _candidates(graph: nnx.GraphDef, state: nnx.State, catalogue: jax.Array, batch: Batch):
  found = nnx.merge(graph, state).candidates(batch, catalogue)
  return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), found)  # every process reads all


def collect_examples(model: BlendModel, evaluator: Evaluator) -> Examples:
  """The examples among the evaluator's users."""
  place_model(model)
  graph, state = nnx.split(model)
  catalogue = model_catalogue(graph, state)
  parts = []
  for batch in evaluator.batches():
    item_QK, score_QK, feature_QKF = jax.device_get(_candidates(graph, state, catalogue, batch))
    user_Q, target_Q = jax.device_get((batch.piece_Q, batch.target_Q))
    q, place_N = np.nonzero(item_QK == target_Q[:, None])  # in unused places the target is 0
    parts.append(Examples(user_Q[q], place_N.astype(np.int32), score_QK[q], feature_QKF[q]))
  return Examples(*map(np.concatenate, zip(*parts, strict=True)))


def with_some_new(model: BlendModel) -> BlendModel:
  """A model that treats NEW_SHARE of the items as new; always the same ones."""
  new_I = np.random.default_rng(0).random(model.num_items + 1) < NEW_SHARE
  new_I[0] = False  # padding
  return model.mask_as_new(new_I)


def fit_reranker(examples: Examples, unused: tuple[int, ...] = ()) -> RerankerParams:
  """Fits MEMBERS rerankers and averages them. unused: features that must have no influence."""
  x = examples.feature_NKF.reshape(-1, examples.feature_NKF.shape[-1])
  deviation_F = x.std(0, dtype=np.float64)
  varies_F = deviation_F > 1e-6
  varies_F[list(unused)] = False
  factor_F = np.where(varies_F, 1 / np.where(varies_F, deviation_F, 1), 0)
  mean_F = jnp.asarray(x.mean(0, dtype=np.float64), jnp.float32)
  keys_M = jax.random.split(jax.random.key(0), MEMBERS)
  fit = functools.partial(_fit_member, mean_F, jnp.asarray(factor_F, jnp.float32))
  data = (examples.score_NK, examples.feature_NKF, examples.place_N)
  members = jax.jit(jax.vmap(fit, (0, None)))(keys_M, jax.tree.map(jnp.asarray, data))
  return jax.device_get(average(members))


def _fit_member(mean_F: jax.Array, factor_F: jax.Array, key: jax.Array, data) -> RerankerParams:
  N, F = len(data[0]), len(mean_F)
  batch = min(BATCH, N)
  steps = N // batch
  start_key, order_key = jax.random.split(key)
  trained = {
    "scale": jnp.ones(()),
    "linear_F": jnp.zeros(F),
    "hidden_FH": jax.random.normal(start_key, (F, HIDDEN)) * F**-0.5,
    "bias_H": jnp.zeros(HIDDEN),
    "output_H": jnp.zeros(HIDDEN),
  }

  def as_params(trained) -> RerankerParams:
    return RerankerParams(mean_F=mean_F, factor_F=factor_F, **trained)

  def loss(trained, score_BK, feature_BKF, place_B):
    score_BK = rerank(as_params(trained), score_BK, feature_BKF)
    return optax.softmax_cross_entropy_with_integer_labels(score_BK, place_B).mean()

  learner = optax.adamw(
    optax.cosine_decay_schedule(LEARNING_RATE, EPOCHS * steps), weight_decay=WEIGHT_DECAY
  )

  def step(carry, example_B):
    trained, state = carry
    gradient = jax.grad(loss)(trained, *(x[example_B] for x in data))
    updates, state = learner.update(gradient, state, trained)
    return (optax.apply_updates(trained, updates), state), None

  orders = jax.vmap(lambda k: jax.random.permutation(k, N))(jax.random.split(order_key, EPOCHS))
  example_SB = orders[:, : steps * batch].reshape(-1, batch)
  (trained, _), _ = jax.lax.scan(step, (trained, learner.init(trained)), example_SB)
  return as_params(trained)
