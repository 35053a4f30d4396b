"""Turns raw events into a dataset folder: `from mmesid_jax.ingest import from_dataframe`."""


def __getattr__(name: str):
  # imported late: the command line reads `ingest.settings`, which must not import numpy
  if name == "from_dataframe":
    from mmesid_jax.ingest.prepared_folder import from_dataframe

    return from_dataframe
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
