"""Lengths of time as a person reads them."""


def format_duration(seconds: float) -> str:
  """Two units at most: "7 s", "3 min 5 s", "2 h 10 min"."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes_left = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes_left} min"
  return f"{minutes} min {rest} s" if minutes else f"{rest} s"
