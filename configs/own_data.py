"""Your own dataset folder, as mmesid_jax.prepare writes it.

  python -m mmesid_jax.train --config=configs/own_data.py --config.data.dir=DIR --workdir=runs/own

With vectors of texts or images in DIR: --config.features.text=text.npy --config.features.visual=...
Sizes are those of configs/beauty.py (12,000 items, 200,000 events). A smaller catalogue wants fewer
codes, --config.semantic_ids.quantizer.codes=16, and smaller batches, as configs/quickstart.py has.
"""

from ml_collections import ConfigDict

from mmesid_jax.config.schema import default_config


def get_config(preset: str = "best") -> ConfigDict:
  return default_config(preset)
