"""The reranker against its formula in float64, and the average of several."""

import numpy as np
from scipy.special import ndtr

from mmesid_jax.models.layers.reranker import Reranker, RerankerParams, average, rerank

Q, K, F, H, M = 3, 5, 4, 6, 3
RNG = np.random.default_rng(0)
SCORE = RNG.normal(size=(Q, K)).astype(np.float32)
FEATURE = RNG.normal(2, 3, (Q, K, F)).astype(np.float32)


def random_params(*members: int) -> RerankerParams:
  """Several rerankers, or one, with the same mean and factor of features."""
  shapes = {"scale": (), "linear_F": (F,), "hidden_FH": (F, H), "bias_H": (H,), "output_H": (H,)}
  arrays = {name: RNG.normal(size=(*members, *shape)) for name, shape in shapes.items()}
  arrays |= {"mean_F": np.broadcast_to([2.0, 1.0, -1.0, 0.5], (*members, F))}
  arrays |= {"factor_F": np.broadcast_to([0.3, 0.0, 2.0, 1.0], (*members, F))}
  return RerankerParams(**{name: np.float32(x) for name, x in arrays.items()})


def formula(p: RerankerParams) -> np.ndarray:
  """The scores, candidate by candidate."""
  found = np.zeros((Q, K))
  for q, k in np.ndindex(Q, K):
    x_F = [(FEATURE[q, k, f] - p.mean_F[f]) * p.factor_F[f] for f in range(F)]
    found[q, k] = p.scale * SCORE[q, k] + sum(p.linear_F[f] * x_F[f] for f in range(F))
    for h in range(H):
      inner = p.bias_H[h] + sum(x_F[f] * p.hidden_FH[f, h] for f in range(F))
      found[q, k] += p.output_H[h] * inner * ndtr(np.float64(inner))
  return found


def test_scores_are_those_of_the_formula():
  p = random_params()
  for found in (rerank(p, SCORE, FEATURE), Reranker(p)(SCORE, FEATURE)):
    np.testing.assert_allclose(found, formula(p), rtol=1e-5, atol=1e-5)


def test_a_feature_with_factor_0_has_no_influence():
  p = random_params()
  other = FEATURE.copy()
  other[..., 1] = -1e6
  np.testing.assert_array_equal(rerank(p, SCORE, other), rerank(p, SCORE, FEATURE))


def test_the_average_scores_as_its_members_do_on_average():
  members = random_params(M)
  alone = [rerank(RerankerParams(*(x[m] for x in members)), SCORE, FEATURE) for m in range(M)]
  np.testing.assert_allclose(
    rerank(average(members), SCORE, FEATURE), np.mean(alone, 0), rtol=1e-5, atol=1e-5
  )
