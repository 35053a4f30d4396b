"""Options that are seldom changed, each changed alone, on the quickstart's catalogue.

  python -m mmesid_jax.ablate --config=configs/options.py --workdir=runs/options
    --results=results/options

Three seeds; 2 CPU cores: about 40 min. The table says which of them are worth a try.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

QUICKSTART = pathlib.Path(__file__).with_name("quickstart.py")


def get_config() -> ConfigDict:
  def quantizer(**changes):
    return {"semantic_ids": {"quantizer": changes}}

  def optimizer(**changes):
    return {"recommender": {"optimizer": changes}}

  variants = {
    "base": {},
    # codebooks
    "slow_averages": quantizer(average_rate=0.01),
    "no_revival": quantizer(revival=0.0),
    "no_sinkhorn": quantizer(sinkhorn_epsilon=0.0),
    "short_sinkhorn": quantizer(sinkhorn_iterations=3),
    "strong_commitment": quantizer(commitment=1.0),
    # the losses of the semantic IDs
    "warm_alignment": {"semantic_ids": {"temperature": 1.0}},
    "weak_reconstruction": {"semantic_ids": {"reconstruction_weight": 1.0}},
    "weak_quantization": {"semantic_ids": {"quantization_weight": 0.1}},
    "strong_alignment": {"semantic_ids": {"alignment_weight": 1.0}},
    # the recommender
    "small_content": {"recommender": {"whiten_std": 0.01}},
    "large_content": {"recommender": {"whiten_std": 0.16}},
    "no_clipping": optimizer(clip=0.0),
    "b2_95": optimizer(b2=0.95),
    "weight_decay": optimizer(weight_decay=0.1),
  }
  base = runpy.run_path(str(QUICKSTART))["get_config"]()
  return ConfigDict({"base": base, "seeds": (0, 1, 2), "variants": variants, "sums": {}})
