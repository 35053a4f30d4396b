"""Options that no other configuration changes, each at another value: the quickstart's synthetic
catalogue, three seeds.

  python -m mmesid_jax.ablate --config=options --workdir=runs/options --results=results/options
"""

from ml_collections import ConfigDict

from mmesid_jax.config.named_configs import config_file, load_config


def get_config() -> ConfigDict:
  base = load_config(config_file("quickstart"))
  base.stages = ("collaborative", "semantic_ids", "recommender")
  quantizer = {
    "slow_averages": {"average_rate": 0.02},
    "no_revival": {"revival": 0.0},
    "no_sinkhorn": {"sinkhorn_epsilon": 0.0},
    "short_sinkhorn": {"sinkhorn_iterations": 5},
    "strong_commitment": {"commitment": 1.0},
  }
  semantic_ids = {
    "warm_alignment": {"temperature": 1.0},
    "weak_reconstruction": {"reconstruction_weight": 0.3},
    "weak_quantization": {"quantization_weight": 0.1},
    "strong_alignment": {"alignment_weight": 0.3},
  }
  recommender = {
    "small_content": {"whiten_std": 0.01},
    "large_content": {"whiten_std": 0.16},
    "no_clipping": {"optimizer": {"clip": 1e6}},
    "b2_95": {"optimizer": {"b2": 0.95}},
    "weight_decay": {"optimizer": {"weight_decay": 0.1}},
  }
  variants = {
    "base": {},
    **{name: {"semantic_ids": {"quantizer": changes}} for name, changes in quantizer.items()},
    **{name: {"semantic_ids": changes} for name, changes in semantic_ids.items()},
    **{name: {"recommender": changes} for name, changes in recommender.items()},
  }
  return ConfigDict({"base": base, "seeds": (0, 1, 2), "variants": variants, "sums": {}})
