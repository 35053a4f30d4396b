"""Amazon Beauty, small Llama from scratch, all stages on a laptop.

  python -m mmesid_jax.train --config=configs/beauty.py --config.data.dir=DIR --workdir=runs/beauty

2 CPU cores: 13 min. Test nDCG@5, mean of seeds 0 and 1, at revision a368c05: history masked SASRec
.0459, MME-SID .0476; unmasked .0303, .0353.

`--config=configs/beauty.py:paper` takes the published choices, `:released_code` those of the
published code.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config(preset)
  config.features.text = "text.npy"
  return config
