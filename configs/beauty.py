"""Amazon Beauty, small Llama from scratch, all stages on a laptop.

  python -m mmesid_jax.train --config=configs/beauty.py --config.data.dir=DIR --workdir=runs/beauty

2 CPU cores: about 18 min. Test nDCG@5, mean of three seeds: history masked SASRec .0454, MME-SID
.0488, with the evidence .0678; unmasked .0298, .0360, .0677.

`--config=configs/beauty.py:paper` takes the published choices, `:released_code` those of the
published code.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import apply_preset, default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config()
  config.features.update(collaborative="stage", text="text.npy")

  # SASRec
  config.collaborative.update(width=128, layers=2, heads=2, dropout=0.5, loss="softmax")
  config.collaborative.update(rows=32, row_length=64, targets=2048, epochs=14)  # 0.3 % are cut
  config.collaborative.optimizer.update(learning_rate=3e-3, warmup_steps=100)

  # semantic IDs
  config.semantic_ids.quantizer.update(kind="rqvae", levels=4, codes=256, learning="average")
  config.semantic_ids.update(hidden=(512, 512), reconstruction="mse", alignment="info_nce")
  config.semantic_ids.update(batch=1024, epochs=20)
  config.semantic_ids.optimizer.update(learning_rate=2e-4, schedule="constant")

  # recommender: a small Llama, from scratch
  config.recommender.update(width=128, layers=2, heads=2, kv_heads=2, head_width=64, mlp_width=256)
  config.recommender.update(dropout=0.5, item_dropout=0.5, whiten=128)
  config.recommender.update(encoder="tied", codes="codebooks", fusion="sum")
  config.recommender.update(rows=16, row_length=128, targets=2048)
  config.recommender.epochs = 4  # with eight, weighted fusion gained less than a seed's spread
  config.recommender.optimizer.update(learning_rate=3e-3, warmup_steps=100)

  apply_preset(config, preset)  # changes some of the choices above, no size
  return config
