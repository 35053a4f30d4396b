"""Amazon Beauty, small Llama from scratch, all stages on a laptop.

  python -m mmesid_jax.train --config=configs/beauty.py --config.data.dir=DIR --workdir=runs/beauty

2 CPU cores: about 12 min. Test nDCG@5, mean of three seeds: history masked SASRec .0460, MME-SID
.0505; unmasked .0308, .0364.

`--config=configs/beauty.py:paper` takes the published choices, `:released_code` those of the
published code.
"""

from ml_collections import ConfigDict

from mmesid_jax.config.schema import default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config(preset)
  config.features.text = "text.npy"
  config.recommender.epochs = 4  # with eight, weighted fusion gained less than a seed's spread
  return config
