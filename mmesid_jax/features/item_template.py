"""The text of an item, written from its fields."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmesid_jax.errors import UserError

DEFAULT_SEPARATOR = ", "  # names of a list


class ItemTemplate:
  """Writes "{title}. {brand}. {categories}" of an item's fields.

  A list becomes its names with ", " between them; "{categories: > }" puts " > " there instead. A
  field that an item lacks is left out with the text before it; where that leaves the text to begin
  with punctuation or space, that goes too. Raises UserError for braces that do not match, and for
  a template without a field.
  """

  def __init__(self, template: str):
    try:
      parsed = list(string.Formatter().parse(template))
    except ValueError as error:
      raise UserError(f"--template={template}: {error}") from None
    self._fields, self._end = [], ""  # (text before it, name, text between names of a list)
    for text, name, between, conversion in parsed:
      self._end += text
      if name is None:  # a literal brace
        continue
      if not name or conversion:
        self._fields.clear()
        break
      self._fields.append((self._end, name, between or DEFAULT_SEPARATOR))
      self._end = ""
    if not self._fields:
      raise UserError(
        f"--template={template}: expected names of fields in braces, as in "
        '"{title}. {brand}. {categories}"'
      )

  @property
  def fields(self) -> tuple[str, ...]:
    return tuple(name for _, name, _ in self._fields)

  def __call__(self, item: Mapping[str, Any]) -> str | None:
    """The text; None for an item that has none of the fields."""
    written = ""
    for position, (before, name, between) in enumerate(self._fields):
      if value := between.join(_field_texts(item.get(name))):
        opens = position > 0 and not written
        written += before.lstrip(string.punctuation + string.whitespace) if opens else before
        written += value
    return written + self._end if written else None


def item_texts(items: Sequence[Mapping[str, Any]], template: str) -> list[str | None]:
  """Of every item, [I]. Raises UserError as Template does, and for a field that no item names."""
  write = ItemTemplate(template)
  known = set().union(*items)
  for name in write.fields:
    if name not in known:
      raise UserError(
        f"--template={template}: no item has a field {name!r} ({', '.join(sorted(known))})"
      )
  return [write(item) for item in items]


def _field_texts(value: Any) -> Iterator[str]:
  """The texts in a field: of text or a number one, of a list those of its parts; nothing blank."""
  if isinstance(value, str | int | float):
    if text := str(value).strip():
      yield text
  elif isinstance(value, Iterable) and not isinstance(value, Mapping):
    for part in value:
      yield from _field_texts(part)
