"""Tables of text, for terminals and Markdown files."""

from collections.abc import Iterable, Sequence

from mmesid_jax.display.escape import escape_line


def format_table(
  header: Sequence[object], rows: Iterable[Sequence[object]], *, text_columns: int = 1
) -> str:
  """Aligned lines: the header, then a line for every row; no line ends with spaces.

  Args:
    header: titles of the columns.
    rows: as many cells each as the header has; a cell is shown as str(cell).
    text_columns: the first columns, which are aligned to the left; the others hold numbers and
      are aligned to the right.
  """
  cells = _as_text(header, rows)
  widths = _widths(cells)

  def line(row: Sequence[str]) -> str:
    left = zip(row[:text_columns], widths[:text_columns], strict=True)
    right = zip(row[text_columns:], widths[text_columns:], strict=True)
    aligned = [cell.ljust(width) for cell, width in left]
    return "  ".join([*aligned, *(cell.rjust(width) for cell, width in right)]).rstrip()

  return "\n".join(map(line, cells))


def format_markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
  """A Markdown table whose source is aligned too, all columns to the left."""
  cells = _as_text(header, rows)
  widths = _widths(cells)
  lines = [
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
    for row in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(lines)


def _as_text(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[list[str]]:
  return [[escape_line(str(cell)) for cell in row] for row in (header, *rows)]


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
  return [max(map(len, column)) for column in zip(*cells, strict=True)]
