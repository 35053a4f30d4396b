"""Statistics of a prepared dataset: counts, lengths, popularity and times."""

from typing import Any

import numpy as np

from mmesid_jax.data.repeats import count_held_out_repeats
from mmesid_jax.ingest.catalogue import REQUIRABLE, Catalogue
from mmesid_jax.ingest.events import Events

TIES = "events at the same time as the user's previous event"
TIED_USERS = {
  name: f"users whose {name} item is at the same time as the item before it"
  for name in ("test", "validation")
}
REPEATED_USERS = {
  part: f"users whose {name} item is in their own history"
  for part, name in (("valid", "validation"), ("test", "test"))
}
QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


def dataset_statistics(events: Events, catalogue: Catalogue) -> dict[str, Any]:
  """Computes the statistics of sorted events, with users and items numbered without gaps.

  The result can be written as JSON.
  """
  lengths_U = np.bincount(events.user_E)
  counts_I = np.bincount(events.item_E)
  users, items = len(lengths_U), len(counts_I)
  figures = {
    **events.counts(),
    "density": len(events) / (users * items),
    "length": _spread(lengths_U),
    "popularity": _spread(counts_I),
    "evaluated users": int((lengths_U >= 3).sum()),
    "items described": sum(key in catalogue for key in events.item_keys),
    **{f"items with {name}": 0 for name in REQUIRABLE},
  }
  for key in events.item_keys:
    item = catalogue[key]
    for name in REQUIRABLE:
      figures[f"items with {name}"] += item.has(name)
  offsets = np.concatenate([[0], np.cumsum(lengths_U)])
  repeats = count_held_out_repeats(events.item_E + 1, offsets)
  figures |= {REPEATED_USERS[part]: count.repeated for part, count in repeats.items()}
  if events.time_E is not None:
    first, last = int(events.time_E.min()), int(events.time_E.max())
    figures["time"] = {"first": _date(first), "last": _date(last)}
    figures |= _count_ties(events)
  return figures


def _spread(count_E: np.ndarray) -> dict[str, float]:
  quantiles = np.quantile(count_E, QUANTILES).tolist()
  named = {f"{q:.0%}": round(value, 1) for q, value in zip(QUANTILES, quantiles, strict=True)}
  return {"mean": round(float(count_E.mean()), 2), **named}


def _date(seconds: int) -> str:
  return str(np.datetime64(seconds, "s"))


def _count_ties(events: Events) -> dict[str, int]:
  """Counts events that have the time of the one before; apart those that are held out.

  Held out are the last event (test) and the one before it (validation) of users with at least 3.
  """
  ties_E = events.ties()
  ends_U = np.cumsum(np.bincount(events.user_E))
  ends_U = ends_U[np.diff(ends_U, prepend=0) >= 3]
  return {
    TIES: int(ties_E.sum()),
    **{TIED_USERS[n]: int(ties_E[ends_U - k].sum()) for n, k in (("test", 1), ("validation", 2))},
  }
