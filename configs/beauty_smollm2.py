"""Amazon Beauty on SmolLM2-135M with LoRA: a pretrained model on 2 CPU cores or one small GPU.

docs/smollm2.md says where the weights are. DIR holds sequences.txt, items.jsonl, text.npy:

  python -m mmesid_jax.convert_gguf --file=SmolLM2-135M-Instruct.Q4_1.gguf --output=smollm2
  python -m mmesid_jax.train --config=configs/beauty_smollm2.py --config.data.dir=DIR
    --config.recommender.backbone.checkpoint=smollm2 --workdir=runs/smollm2
  python -m mmesid_jax.evaluate --workdir=runs/smollm2 --split=test
  python -m mmesid_jax.recommend --workdir=runs/smollm2 --history="12 57 901"
  python -m mmesid_jax.export --workdir=runs/smollm2 --output=smollm2-beauty

2 CPU cores: a step takes 10 seconds of CPU time and the process 2.3 GiB, measured over eight steps.
An epoch has 76, which makes 13 minutes of CPU time. Not measured: a whole training and its quality.

`--config=configs/beauty_smollm2.py:paper` takes the published choices, `:released_code` those of
the published code; both keep this learned prompt.
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

  # recommender: SmolLM2 with LoRA
  r = config.recommender
  r.backbone.update(kind="lora", weights="bfloat16", remat="layers")
  r.lora.update(rank=8, alpha=16.0, dropout=0.05)
  r.lora.targets = ("q", "k", "v", "out", "gate", "up", "down")
  # 0 = as the checkpoint says
  r.update(width=0, layers=0, heads=0, kv_heads=0, head_width=0, mlp_width=0)
  r.update(rope_theta=0.0, norm_eps=0.0)
  r.update(dropout=0.0, item_dropout=0.0)  # LoRA has its own
  r.update(token_scale=30.0, state_scale=0.25)  # tokens as large as what its layers add to them
  r.update(encoder="tied", codes="codebooks", fusion="sum", whiten=128)
  r.update(rows=16, row_length=128, targets=2048, epochs=4)

  apply_preset(config, preset)  # changes some of the choices above, no size
  r.optimizer.update(learning_rate=1e-3, warmup_steps=100)
  r.prompt.update(length=1, response=0)  # a target is read at the item before it
  return config
