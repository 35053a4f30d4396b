"""Recommendations from a trained workdir."""

from mmesid_jax.serving.recommender import Recommendation, Recommender, TopItems

__all__ = ["Recommendation", "Recommender", "TopItems"]
