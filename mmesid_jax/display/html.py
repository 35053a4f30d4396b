"""Parts of HTML pages that need no other file: tables, small print, and embedded pictures."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from mmesid_jax.display.plots import Picture

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0 .4rem; }
th, td { padding: .2rem .8rem; text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 600; border-bottom: 1px solid #999; }
td { border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
h3 { font-size: 1rem; margin: 2rem 0 0; }
p, figcaption { max-width: 46rem; }
.note { color: #8a4b00; }
.yes { color: #2c6b31; }
.partly { color: #8a6a00; }
.no { color: #a3271a; }
.small { color: #555; font-size: .9rem; }
figure { margin: .6rem 0 0; }
figure img { width: 100%; }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
  """A whole page from parts that are HTML; the title is text."""
  body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
    f"<body>\n{body}\n</body>\n</html>\n"
  )


def html_figure(picture: Picture) -> str:
  """A picture under its title and over its caption."""
  data = base64.b64encode(picture.png).decode()
  return (
    f'<h3>{escape(picture.title)}</h3>\n<figure><img alt="{escape(picture.title)}" '
    f'src="data:image/png;base64,{data}">\n<figcaption class="small">{escape(picture.good)}'
    "</figcaption></figure>"
  )


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """A table whose first column is text and whose other columns are numbers, aligned right."""

  def row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

  lines = [row("th", header), *(row("td", cells) for cells in rows)]
  return "<table>\n" + "\n".join(lines) + "\n</table>"


def small_text(text: str) -> str:
  """A paragraph of small print."""
  return f'<p class="small">{escape(text)}</p>'
