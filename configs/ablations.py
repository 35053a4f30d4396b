"""What every part of MME-SID is worth on Amazon Beauty: variants of configs/beauty.py, three seeds.

  python -m mmesid_jax.ablate --config=configs/ablations.py --config.base.data.dir=DIR
    --workdir=runs/ablations --results=results/ablations

Prints a table after every run and writes it to RESULTS/table.md. Stop it and start it again as you
like; --variants=no_codes,mlp and --seeds=0 take a part (several processes at once: a seed each).
The table alone, and what is still owed:

  python -m mmesid_jax.ablate --config=configs/ablations.py --results=results/ablations --table

A variant is what it changes of `base`; {"preset": ...} applies a preset, which leaves sizes alone.
`sums` trains nothing: the scores (log-probabilities) of models of base runs are added, each with
weight 1, and ranked. "next" takes the model of the seed behind, the first one's behind the last.
"""

from ml_collections import ConfigDict

from mmesid_jax.config.schema import default_config


def get_config() -> ConfigDict:
  base = default_config()
  base.features.text = "text.npy"
  base.recommender.epochs = 4
  base.recommender.fusion = "frequency"  # the paper's; `best` took the plain sum for what it gains
  variants = {
    "base": {},
    # the quantiser's losses
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
  return ConfigDict({"base": base, "seeds": (0, 1, 2), "variants": variants, "sums": sums})
