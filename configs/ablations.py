"""Ablations of MME-SID on Amazon Beauty: variants of configs/beauty.py, three seeds.

  python -m mmesid_jax.ablate --config=configs/ablations.py --config.base.data.dir=DIR
    --workdir=runs/ablations --results=results/ablations

Prints a table after every run and writes it to RESULTS/table.md. Stop it and start it again as you
like; --variants=no_codes,mlp and --seeds=0 take a part (several processes at once: a seed each).
The table alone, and what is still owed:

  python -m mmesid_jax.ablate --config=configs/ablations.py --results=results/ablations --table

A variant is what it changes of `base`; {"preset": ...} applies a preset, which leaves sizes alone.
`sums` trains nothing: the scores (log-probabilities) of models of base runs are added, each with
weight 1, and ranked. "next" takes the model of the next seed; of the last seed, that of the first.
"""

from ml_collections import ConfigDict

from mmesid_jax.config import default_config


def base_config() -> ConfigDict:
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

  # recommender: a small Llama, from scratch. Its fusion is the paper's; a variant takes the sum.
  config.recommender.update(width=128, layers=2, heads=2, kv_heads=2, head_width=64, mlp_width=256)
  config.recommender.update(dropout=0.5, item_dropout=0.5, whiten=128)
  config.recommender.update(encoder="tied", codes="codebooks", fusion="frequency")
  config.recommender.update(rows=16, row_length=128, targets=2048)
  config.recommender.epochs = 4  # with eight, weighted fusion gained less than a seed's spread
  config.recommender.optimizer.update(learning_rate=3e-3, warmup_steps=100)
  return config


def get_config() -> ConfigDict:
  variants = {
    "base": {},
    # the losses of the semantic IDs
    "mmd": {"semantic_ids": {"reconstruction": "mmd"}},
    "mmd_and_mse": {"semantic_ids": {"reconstruction": "both"}},
    "no_alignment": {"semantic_ids": {"alignment": "none"}},
    # what codes are
    "kmeans": {"semantic_ids": {"quantizer": {"kind": "kmeans"}}},
    "fsq": {"semantic_ids": {"quantizer": {"kind": "fsq"}}},
    # what the recommender takes from the semantic IDs
    "no_codes": {"recommender": {"codes": "none"}},
    "random_codes": {"recommender": {"codes": "random"}},
    "frozen_codes": {"recommender": {"codes": "frozen"}},
    # one modality
    "only_collaborative": {"features": {"text": "", "visual": ""}},
    "only_text": {"features": {"collaborative": "", "visual": ""}},
    # how items are read and scored
    "plain_sum": {"recommender": {"fusion": "sum"}},
    "untied": {"recommender": {"encoder": "untied"}},
    "mlp": {"recommender": {"encoder": "mlp"}},
    "no_whitening": {"recommender": {"whiten": 0}},
    # all published choices at once
    "paper": {"preset": "paper"},
    "released_code": {"preset": "released_code"},
  }
  sums = {
    "with_sasrec": ("recommender", "collaborative"),
    "two_sasrecs": ("collaborative", "next collaborative"),  # the control: two models as well
  }
  return ConfigDict({"base": base_config(), "seeds": (0, 1, 2), "variants": variants, "sums": sums})
