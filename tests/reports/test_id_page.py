"""The page as a browser gets it: whole, nothing from outside, and no name taken as HTML."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest

from mmesid_jax.evaluation.codebook_health import measure_health
from mmesid_jax.evaluation.geometry import principal_plane
from mmesid_jax.reports import id_plots
from mmesid_jax.reports.id_page import semantic_id_page

VOID = {"meta", "img"}
DATA = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


class Outline(html.parser.HTMLParser):
  """Fails on a tag that is not closed in its place; collects tags, attributes and text."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ""
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def figures(modalities, *, levels=2, codes=5, after=True, categories=True):
  """What stages.id_report hands over, of invented items."""
  rng = np.random.default_rng(0)
  code = {m: rng.integers(codes, size=(30, levels)) for m in modalities}
  one = {"width": 3, "effective_rank": 2.5, "spectrum": [0.7, 0.3, 0.0]}
  inputs = {"before": {"item token": one, **{f"{m} projected": one for m in modalities}}}
  tau = {"mean": 0.3, "users": 9, "ties": 0.1}
  found = {
    "num_items": 30,
    "health": measure_health(code, codes, ["a", "b", "c"] * 10 if categories else ()),
    "count_LC": {
      m: [np.bincount(c, minlength=codes).tolist() for c in x.T] for m, x in code.items()
    },
    "residual_norm": {m: np.linspace(1, 0.2, levels + 1).tolist() for m in modalities},
    "tau": {m: {"quantized": tau, "before": tau} for m in modalities},
    "inputs": inputs | ({"after": inputs["before"]} if after else {}),
    "notes": ["<note> & more"],
  }
  vectors = {m: rng.normal(size=(30, 4)) for m in modalities}
  planes = {m: (principal_plane(vectors[m]), code[m][:, 0]) for m in modalities}
  return found, id_plots.make_pictures(found, planes)


NASTY = "<b>\"$\\frac$&'</b>"


@pytest.mark.filterwarnings("error")  # of matplotlib: labels left out, glyphs not found
def test_the_page_is_whole_and_takes_names_as_text():
  modalities = ("collaborative", NASTY, "_hidden")
  found, drawn = figures(modalities)
  text = semantic_id_page("/runs/<script>", found, drawn)
  outline = Outline(text)
  assert {"script", "b", "note", "link", "iframe"}.isdisjoint(outline.tags)
  assert "/runs/<script>" in outline.text and "<note> & more" in outline.text
  for m in modalities:
    assert outline.text.count(m) >= 5  # introduction, three tables, pictures
  assert outline.tags.count("img") == len(drawn) == 3 * 3 + 2
  assert outline.text.count("Good: ") == len(drawn)


def test_nothing_is_fetched():
  text = semantic_id_page("runs/a", *figures(("text",)))
  outside = DATA.sub("", text)
  assert "http" not in outside and "//" not in outside and "url(" not in outside
  links = [v for k, v in Outline(text).attributes if k in ("src", "href", "srcset", "action")]
  assert links and all(DATA.fullmatch(link) for link in links)


def test_pictures_are_png_files_that_open():
  image = pytest.importorskip("PIL.Image")  # comes with matplotlib
  text = semantic_id_page("runs/a", *figures(("text",)))
  for data in DATA.findall(text):
    png = base64.b64decode(data, validate=True)
    assert b"http" not in png  # matplotlib's signature
    opened = image.open(io.BytesIO(png))
    opened.load()
    assert opened.format == "PNG" and opened.width == 1300
    assert len(opened.convert("RGB").getcolors(1 << 20)) > 2  # something is drawn


def test_the_same_figures_give_the_same_page():
  assert semantic_id_page("runs/a", *figures(("text",))) == semantic_id_page(
    "runs/a", *figures(("text",))
  )


def test_what_is_not_there_is_a_dash_and_no_column():
  outline = Outline(semantic_id_page("runs/a", *figures(("text",), after=False, categories=False)))
  assert "by chance" not in outline.text.replace("0 as by chance", "")
  assert "after training" in outline.text and "-" in outline.text


@pytest.mark.parametrize(("levels", "codes"), [(1, 2), (3, 17), (8, 300)])
def test_any_number_of_levels_and_codes_is_drawn(levels, codes):
  found, drawn = figures(("text",), levels=levels, codes=codes)
  Outline(semantic_id_page("runs/a", found, drawn))


def test_usage_has_a_square_for_every_code():
  """One level with 4 codes, 2 of them dead: as many grey pixels as colored ones."""
  image = pytest.importorskip("PIL.Image")
  png = id_plots.usage_squares(np.array([[9, 9, 0, 0]]))
  colors = dict(
    (color, n) for n, color in image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 20)
  )
  grey = colors[tuple(int(id_plots.GREY[i : i + 2], 16) for i in (1, 3, 5))]
  dark = colors[tuple(int(id_plots.SHADES[-1][i : i + 2], 16) for i in (1, 3, 5))]
  assert grey > 10_000
  assert dark == pytest.approx(grey, rel=0.1)
