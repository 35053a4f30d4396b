"""Makes the text of an item from its fields."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError

DEFAULT_TEMPLATE = "Title: {title}. Brand: {brand}. Categories: {categories}"
DEFAULT_SEPARATOR = ", "  # between the entries of a list


class ItemTemplate:
  """Fills a template such as "{title}. {brand}. {categories}" with an item's fields.

  The entries of a list are joined by ", "; "{categories: > }" joins them by " > ". A field that an
  item lacks is left out together with the text before it. If the result then begins with
  punctuation or space, that is removed too.

  Raises UserError for braces that do not match, and for a template without a field.
  """

  def __init__(self, template: str):
    try:
      parsed = list(string.Formatter().parse(template))
    except ValueError as error:
      raise UserError(f"--template={template}: {error}") from None
    self._fields, self._end = [], ""  # (text before it, name, separator)
    for text, name, separator, conversion in parsed:
      self._end += text
      if name is None:  # a literal brace
        continue
      if not name or conversion:
        self._fields.clear()
        break
      self._fields.append((self._end, name, separator or DEFAULT_SEPARATOR))
      self._end = ""
    if not self._fields:
      raise UserError(
        f"--template={template}: expected names of fields in braces, as in "
        '"{title}. {brand}. {categories}"'
      )

  @property
  def fields(self) -> tuple[str, ...]:
    """The names of the fields, in the order of the template."""
    return tuple(name for _, name, _ in self._fields)

  def __call__(self, item: Mapping[str, Any]) -> str | None:
    """Returns the text; None for an item that has none of the fields."""
    result = ""
    for position, (before, name, separator) in enumerate(self._fields):
      if value := separator.join(_field_texts(item.get(name))):
        all_missing_before = position > 0 and not result
        if all_missing_before:
          before = before.lstrip(string.punctuation + string.whitespace)
        result += before + value
    return result + self._end if result else None


def item_texts(items: Sequence[Mapping[str, Any]], template: str) -> list[str | None]:
  """Returns the text of every item, [I]; None for an item that has none of the fields.

  Raises UserError as ItemTemplate does, and for a field that no item has; of the default template,
  which nobody chose, one field is enough.
  """
  fill = ItemTemplate(template)
  known = set().union(*items)
  unknown = [name for name in fill.fields if name not in known]
  if unknown and (template != DEFAULT_TEMPLATE or len(unknown) == len(fill.fields)):
    raise UserError(
      f"--template={template}: no item has a field {unknown[0]!r} ({', '.join(sorted(known))})"
    )
  if unknown:
    reporter.info(f"no item has a field {' or '.join(unknown)}; texts are made of the others")
  return [fill(item) for item in items]


def _field_texts(value: Any) -> Iterator[str]:
  """Yields the texts in a field: one for a text or number, those of every entry for a list.

  Blank texts are skipped.
  """
  if isinstance(value, str | int | float):
    if text := str(value).strip():
      yield text
  elif isinstance(value, Iterable) and not isinstance(value, Mapping):
    for part in value:
      yield from _field_texts(part)
