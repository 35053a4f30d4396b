"""Raw events to a dataset folder: sequences.txt, items.jsonl, users.jsonl, times.npy, a report.

  python -m mmesid_jax.prepare --config=configs/prepare.py --config.source=amazon2014
    --config.events=reviews_Beauty.json.gz --config.metadata=meta_Beauty.json.gz
    --output=data/beauty

Any table of events, by the names of its columns:

  python -m mmesid_jax.prepare --config=configs/prepare.py --config.events=orders.csv
    --config.columns.user=customer --config.columns.item=sku --config.columns.time=date
    --output=data/shop

Sources: amazon2014, amazon2018, amazon2023, movielens, table (the default). Files may be JSON
lines, CSV or Parquet, compressed by gzip or Zstandard; several stand with commas between them.
mmesid_jax/ingest/settings.py explains every key.
"""

from ml_collections import ConfigDict

from mmesid_jax.ingest.settings import default_settings


def get_config() -> ConfigDict:
  return default_settings()
