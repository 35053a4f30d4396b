"""Turns raw events into a dataset folder with sequences, items, users, times and a report.

  python -m mmesid_jax.prepare --config=configs/prepare.py --config.source=amazon2014
    --config.events=reviews_Beauty.json.gz --config.metadata=meta_Beauty.json.gz
    --output=data/beauty

Any table with one row per event, by the names of its columns, or of the fields in JSON lines:

  python -m mmesid_jax.prepare --config=configs/prepare.py --config.events=orders.csv
    --config.columns.user=customer --config.columns.item=sku --config.columns.time=date
    --output=data/shop

Sources: amazon2014, amazon2018, amazon2023, movielens, table; recognized if none is named. Files
are CSV, JSON lines (one object per line) or Parquet, plain or compressed by gzip or Zstandard;
separate several files by commas. mmesid_jax/ingest/settings.py explains every key.
"""

from ml_collections import ConfigDict

from mmesid_jax.ingest.settings import default_settings


def get_config() -> ConfigDict:
  return default_settings()
