"""Makes plain text of pieces of web pages, as the metadata of shops have them."""

import html
import re

# Elements that stand within a word or line; all others divide it.
INLINE = frozenset(
  "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q s samp "
  "small span strike strong sub sup time tt u var wbr".split()
)
OTHERS = frozenset(
  "address article aside audio base blockquote body br button canvas caption center col colgroup "
  "dd details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 "
  "h2 h3 h4 h5 h6 head header hr html iframe img input legend li link main map menu meta nav "
  "noscript object ol optgroup option p param picture pre script section select source style "
  "summary svg table tbody td template textarea tfoot th thead title tr ul video".split()
)
# For texts whose spaces are single. No part of a pattern reaches past a "<", or it reaches the end:
# so the time is linear, whatever the text (html.parser takes quadratic time, and raises).
HIDDEN = re.compile(
  r"<(script|style)\b[^<>]*>.*?(?:</\1 ?>|\Z)|<!--.*?(?:-->|\Z)|<![^<>]*>", re.IGNORECASE
)
TAG = re.compile(r"""</?([a-z][a-z0-9]*)(?:[ /](?:[^<>"']|"[^"<]*"|'[^'<]*')*)?>""", re.IGNORECASE)
# Statements of JavaScript and rules of CSS.
PROGRAM = re.compile(
  r"\bvar [\w$]+ ?=|\bfunction ?\w* ?\([\w$, ]*\) ?\{|\.getTime\(\)|\bwindow\.\w+ ?= ?[^ =]"
  r"|\bdocument\.\w+\(|\{ ?[\w-]+ ?:[^{}]*\}"
)


def plain_text(text: str | None) -> str | None:
  """Removes tags, scripts, entities and repeated spaces; None for an empty text.

  A text that is, or has, a part of a program (JavaScript, CSS) outside of its element is None: it
  comes from a page that was read wrongly. What looks like a tag, but is no element of HTML, stays.
  """
  text = _single_spaces(html.unescape(text or ""))
  if "<" in text:
    text = _single_spaces(TAG.sub(_replace_tag, HIDDEN.sub(" ", text)))
  return None if not text or PROGRAM.search(text) else text


def _single_spaces(text: str) -> str:
  return " ".join(text.split())


def _replace_tag(tag: re.Match) -> str:
  name = tag[1].lower()
  if name in INLINE:
    return ""
  return " " if name in OTHERS else tag[0]
