"""Amazon Beauty on Llama-3-8B with LoRA: the paper's experiment.

Weights (16 GB; accept Meta's license on the model's page first):

  hf download meta-llama/Meta-Llama-3-8B --include "*.json" "*.safetensors" --local-dir llama3-8b

One GPU of 80 GB, or one TPU v5p chip. DIR holds sequences.txt, items.jsonl, text.npy:

  python -m mmesid_jax.train --config=configs/beauty_llama3_8b.py --config.data.dir=DIR
    --config.recommender.backbone.checkpoint=llama3-8b --workdir=runs/llama3
  python -m mmesid_jax.evaluate --workdir=runs/llama3 --split=test
  python -m mmesid_jax.recommend --workdir=runs/llama3 --history="12 57 901"
  python -m mmesid_jax.export --workdir=runs/llama3 --output=llama3-8b-beauty

16 GB are enough (one TPU v5e chip) with --config.recommender.backbone.weights=nf4 and
--config.recommender.backbone.remat=layers. All devices that are found train one model;
mmesid_jax.plan --device=h200 says beforehand what each would hold. Eight GPUs train eight seeds
instead, each with

  CUDA_VISIBLE_DEVICES=$i python -m mmesid_jax.train ... --config.seed=$i --workdir=runs/llama3-$i

and chips of a TPU host likewise with TPU_VISIBLE_CHIPS=$i.

Measured by benchmarks/llama3_8b.py on one H200, with random weights and random vectors as a third
modality (`paper` then trains the published 439 M): an epoch of 0.9 M tokens in 66 seconds, four
epochs; all test users ranked in ten seconds; 31 GiB, 21 with remat=layers, where an epoch takes 79
seconds. The quality to expect is not known yet: the paper gives no absolute figures, and its visual
vectors of Beauty are not published.

`--config=configs/beauty_llama3_8b.py:paper` takes the published choices, `:released_code` those of
the published code with its prompt; both keep 3e-4 for AdamW, though batches are larger here.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import PROMPTS, apply_preset, default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config()
  config.features.update(collaborative="stage", text="text.npy")

  # SASRec
  config.collaborative.update(width=128, layers=2, heads=2, dropout=0.5, loss="softmax")
  config.collaborative.update(rows=32, row_length=64, targets=2048, epochs=14)  # 0.3 % are cut
  config.collaborative.optimizer.update(learning_rate=3e-3, warmup_steps=100)

  # semantic IDs
  config.semantic_ids.quantizer.update(kind="rqvae", levels=4, codes=256, learning="average")
  config.semantic_ids.update(reconstruction="mse", alignment="info_nce")
  config.semantic_ids.update(hidden=(4096, 4096, 4096), batch=1024, epochs=20)
  config.semantic_ids.optimizer.update(learning_rate=2e-4, schedule="constant")

  # recommender: Llama-3-8B with LoRA
  r = config.recommender
  r.backbone.update(kind="lora", weights="bfloat16", compute="bfloat16", remat="products")
  r.lora.update(rank=8, alpha=16.0, dropout=0.05, targets=("gate", "up", "down"))
  # 0 = as the checkpoint says
  r.update(width=0, layers=0, heads=0, kv_heads=0, head_width=0, mlp_width=0)
  r.update(rope_theta=0.0, norm_eps=0.0)
  r.update(dropout=0.0, item_dropout=0.0)  # LoRA has its own
  r.update(encoder="tied", codes="codebooks", fusion="sum", whiten=128)
  r.update(rows=8, row_length=512, targets=768, epochs=4)

  apply_preset(config, preset)  # changes some of the choices above, no size
  r.optimizer.update(learning_rate=1e-3 if preset == "best" else 3e-4, warmup_steps=100)
  r.prompt.text = PROMPTS["released_code" if preset == "released_code" else "paper"]
  r.prompt.update(length=0, response=0)  # 0 = as the tokenizer counts
  return config
