"""Your own dataset folder, as mmesid_jax.prepare writes it.

  python -m mmesid_jax.train --config=configs/own_data.py --config.data.dir=DIR --workdir=runs/own

With vectors of texts or images in DIR: --config.features.text=text.npy --config.features.visual=...
Those of texts take seconds: python -m mmesid_jax.encode --data=DIR --modality=text --model=tfidf
Batches and codebooks follow the number of users, items and events in DIR, unless you set them.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import apply_preset, default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config()
  config.features.collaborative = "stage"
  config.evaluation.targets = 0  # sizes of 0 follow the data, see mmesid_jax/config/sizes.py

  # SASRec
  config.collaborative.update(width=128, layers=2, heads=2, dropout=0.5, loss="softmax")
  config.collaborative.update(rows=0, row_length=128, targets=0, epochs=14)
  config.collaborative.optimizer.update(learning_rate=3e-3, warmup_steps=100)

  # semantic IDs
  config.semantic_ids.quantizer.update(kind="rqvae", levels=4, codes=0, learning="average")
  config.semantic_ids.update(hidden=(512, 512), reconstruction="mse", alignment="info_nce")
  config.semantic_ids.update(batch=0, epochs=20)
  config.semantic_ids.optimizer.update(learning_rate=2e-4, schedule="constant")

  # recommender: a small Llama, from scratch
  config.recommender.update(width=128, layers=2, heads=2, kv_heads=2, head_width=64, mlp_width=256)
  config.recommender.update(dropout=0.5, item_dropout=0.5, whiten=128)
  config.recommender.update(encoder="tied", codes="codebooks", fusion="sum")
  config.recommender.update(rows=0, row_length=128, targets=0, epochs=8)
  config.recommender.optimizer.update(learning_rate=3e-3, warmup_steps=100)

  apply_preset(config, preset)  # changes some of the choices above, no size
  return config
