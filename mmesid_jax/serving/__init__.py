"""Recommendations from a trained workdir: Recommender by name, Ranker as arrays of ids."""

from mmesid_jax.serving.ranker import Ranker, TopItems
from mmesid_jax.serving.recommender import Recommendation, Recommender

__all__ = ["Ranker", "Recommendation", "Recommender", "TopItems"]
