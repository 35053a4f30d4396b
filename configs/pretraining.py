"""SmolLM2's first layers on Amazon Beauty, and controls that show what pretraining is worth.

  python -m mmesid_jax.ablate --config=configs/pretraining.py --config.base.data.dir=DIR
    --workdir=runs/pretraining --results=results/pretraining

In the folder where it starts stand smollm2 and smollm2-random, the same model before any training
(docs/smollm2.md says how both are made). `base` is SmolLM2 with LoRA. Networks alone are compared;
with --config.model="MME-SID + evidence", another RESULTS and the same WORKDIR, their sums with the
evidence are, and nothing trains twice.
"""

from ml_collections import ConfigDict

from mmesid_jax.config.named_configs import config_file, load_config

LAYERS, EPOCHS = 6, 3
SIZES = {"width": 576, "heads": 9, "kv_heads": 3, "head_width": 64, "mlp_width": 1536}
OWN_SCALES = {"token_scale": 1.0, "state_scale": 1.0}  # of weights that are trained here


def get_config() -> ConfigDict:
  base = load_config(config_file("beauty_smollm2"))
  base.recommender.update(layers=LAYERS, epochs=EPOCHS)
  base.recommender.backbone.update(checkpoint="smollm2", compute="bfloat16", remat="none")
  small = load_config(config_file("beauty")).recommender
  scratch = {"kind": "full", "checkpoint": ""}
  rope = {"rope_theta": 100_000.0, "norm_eps": 1e-5}  # SmolLM2's
  regularized = {"dropout": 0.5, "item_dropout": 0.5}
  variants = {
    "base": {},
    # the same layers, adapters and training; the frozen weights know nothing
    "random_frozen": {"backbone": {"checkpoint": "smollm2-random"}},
    # the same sizes, all weights trained from random ones
    "from_scratch": {"backbone": scratch, **SIZES, **rope, **OWN_SCALES, **regularized},
    # the network of configs/beauty.py
    "small": {
      "backbone": {**scratch, "compute": "float32"},
      **{k: small[k] for k in (*SIZES, *rope, "layers", "epochs", "dropout", "item_dropout")},
      **OWN_SCALES,
      "optimizer": {"learning_rate": small.optimizer.learning_rate},
    },
  }
  variants = {
    name: {"recommender": changes} if changes else {} for name, changes in variants.items()
  }
  settings = {"base": base, "seeds": (0, 1, 2), "variants": variants, "sums": {}}
  return ConfigDict({**settings, "model": "MME-SID"})
