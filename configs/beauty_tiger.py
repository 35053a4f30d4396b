"""Amazon Beauty, generation alone: text becomes semantic IDs, and a small Llama from scratch writes
the next one, as in TIGER (Rajput et al. 2023).

  python -m mmesid_jax.train --config=configs/beauty_tiger.py --config.data.dir=DIR
    --workdir=runs/tiger

It differs from TIGER in that a history has one token per item, the sum of its code vectors, its
text and a learned row, and not one per code; and in that the model has no encoder.

`--config=configs/beauty_tiger.py:paper` takes the choices of MME-SID where they apply,
`:released_code` those of its published code.
"""

from ml_collections import ConfigDict

from mmesid_jax.config.named_configs import config_file, load_config


def get_config(preset: str = "best") -> ConfigDict:
  config = load_config(f"{config_file('beauty')}:{preset}")
  config.stages = ("semantic_ids", "recommender")
  config.features.collaborative = ""
  config.recommender.update(head="generate", codes="codebooks", rows=64, epochs=8)
  config.recommender.generate.modality = "text"
  config.evaluation.beams = 20  # validation costs as much as training with 50
  return config
