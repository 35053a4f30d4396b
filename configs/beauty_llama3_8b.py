"""Amazon Beauty on Llama-3-8B with LoRA: the paper's experiment.

Weights (16 GB; accept Meta's licence on the model's page first):

  hf download meta-llama/Meta-Llama-3-8B --include "*.json" "*.safetensors" --local-dir llama3-8b

One GPU of 80 GB, or one TPU v5p chip. DIR holds sequences.txt, items.jsonl, text.npy:

  python -m mmesid_jax.train --config=configs/beauty_llama3_8b.py --config.data.dir=DIR
    --config.recommender.backbone.checkpoint=llama3-8b --workdir=runs/llama3
  python -m mmesid_jax.evaluate --workdir=runs/llama3 --split=test
  python -m mmesid_jax.recommend --workdir=runs/llama3 --history="12 57 901"
  python -m mmesid_jax.export --workdir=runs/llama3 --output=llama3-8b-beauty

16 GB are enough (one TPU v5e chip) with --config.recommender.backbone.weights=nf4 and
--config.recommender.backbone.remat=layers. All devices that are found train one model; --plan=h200
says beforehand what each would hold. Eight GPUs train eight seeds instead, each with

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

from mmesid_jax.config.schema import PROMPTS, default_config


def get_config(preset: str = "best") -> ConfigDict:
  config = default_config(preset)
  config.features.text = "text.npy"
  config.semantic_ids.hidden = (4096, 4096, 4096)
  r = config.recommender
  r.backbone.kind, r.backbone.compute, r.backbone.remat = "lora", "bfloat16", "products"
  # 0 = what the checkpoint and its tokenizer say
  r.width = r.layers = r.heads = r.kv_heads = r.head_width = r.mlp_width = 0
  r.rope_theta = r.norm_eps = 0.0
  r.prompt.length = r.prompt.response = 0
  r.prompt.text = PROMPTS["released_code" if preset == "released_code" else "paper"]
  r.dropout = r.item_dropout = 0.0  # LoRA has its own
  r.rows, r.row_length, r.targets, r.epochs = 8, 512, 768, 4
  r.optimizer.learning_rate = 1e-3 if preset == "best" else 3e-4
  return config
