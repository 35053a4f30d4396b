"""MovieLens-1M: dense, with long histories and three real modalities, all stages on a laptop.

  python -m mmesid_jax.train --config=configs/ml1m.py --config.data.dir=DIR --workdir=runs/ml1m

Test nDCG@5 with the history masked, one seed: counts .1190, counts + content .1215, SASRec .1237,
MME-SID .1367, with the evidence .1395; unmasked .1190, .1215, .0741, .0909, .1395.

`--config=configs/ml1m.py:paper` takes the published choices, `:released_code` those of the
published code.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import apply_preset, default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config()
  config.features.update(collaborative="stage", text="text.npy", visual="visual.npy")

  # SASRec
  config.collaborative.update(width=64, layers=2, heads=2, dropout=0.2, loss="softmax")
  config.collaborative.update(rows=4, row_length=256, targets=1024, epochs=30)
  config.collaborative.optimizer.update(learning_rate=2e-3, warmup_steps=100)

  # semantic IDs
  config.semantic_ids.quantizer.update(kind="rqvae", levels=4, codes=256, learning="average")
  config.semantic_ids.update(hidden=(512, 512), reconstruction="mse", alignment="info_nce")
  config.semantic_ids.update(batch=1024, epochs=60)
  config.semantic_ids.optimizer.update(learning_rate=2e-4, schedule="constant")

  # recommender: a small Llama, from scratch
  config.recommender.update(width=64, layers=2, heads=2, kv_heads=2, head_width=32, mlp_width=128)
  config.recommender.update(dropout=0.2, item_dropout=0.2, whiten=128)
  config.recommender.update(encoder="tied", codes="codebooks", fusion="sum")
  config.recommender.update(rows=4, row_length=256, targets=1024, epochs=10)
  config.recommender.optimizer.update(learning_rate=2e-3, warmup_steps=100)

  apply_preset(config, preset)  # changes some of the choices above, no size
  return config
