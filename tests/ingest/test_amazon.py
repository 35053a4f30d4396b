"""Real lines of 2014 and 2018, and 2023's as its page describes them."""

import json

import polars as pl
import pytest

from mmesid_jax.ingest import amazon
from mmesid_jax.ingest.catalogue import Catalogue, Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.events import collect_events


def items(source, path, allowed=0):
  bad = BadLines(allowed)
  found = list(amazon.read_metadata(source, path, bad))
  bad.check()
  return found


def test_metadata_of_2014(tmp_path):
  path = tmp_path / "meta.json"
  path.write_text(
    """{'asin': '1', 'title': "L'Or &amp; Co", 'imUrl': 'http://a/1.jpg', """
    """'categories': [['Beauty', 'Make up'], ['Other']], 'description': 'Two\\n\\nlines'}\n"""
    "{'asin': '2', 'categories': [], 'title': ' ', 'brand': ''}\n"
  )
  assert items("amazon2014", path) == [
    Item("1", "L'Or & Co", None, ["Beauty", "Make up"], "Two lines", ["http://a/1.jpg"]),
    Item("2"),
  ]


HALF = "holds half of a surrogate pair; write the whole character, or none"


def test_half_of_a_surrogate_pair_is_a_bad_line_in_every_notation(tmp_path):
  path = tmp_path / "meta.json"
  lines = [
    r'{"asin": "1", "title": "a \ud83d", "brand": null}',
    r'{"asin": "2", "title": "a \ud83d"}',
    r"{'asin': '3', 'categories': [['a', 'b \udc00']]}",
    r'{"asin": "4", "title": "\ud83d\ude00", "related": "\ud83d", "brand": null}',
  ]
  path.write_text("\n".join(lines))
  bad = BadLines(3)
  assert list(amazon.read_metadata("amazon2014", path, bad)) == [Item("4", "\U0001f600")]
  assert bad.quoted == [
    *(f"{path}:1: title {HALF}", f"{path}:2: title {HALF}", f"{path}:3: categories {HALF}")
  ]


def test_metadata_of_2018(tmp_path):
  path = tmp_path / "meta.json"
  lines = [
    {"asin": "1", "title": "Card", "brand": "A", "category": ["G", "C"], "description": ["x", "y"],
     "imageURLHighRes": ["u1", "u2"], "imageURL": ["s"], "price": "$5"},
    {"asin": "2", "title": "", "category": [], "description": [], "imageURL": ["s"],
     "imageURLHighRes": []},
  ]  # fmt: skip
  path.write_text("\n".join(map(json.dumps, lines)))
  assert items("amazon2018", path) == [
    Item("1", "Card", "A", ["G", "C"], "x y", ["u1", "u2"]),
    Item("2", images=["s"]),
  ]


def test_pieces_of_web_pages_are_no_titles(tmp_path):
  path = tmp_path / "meta.json"
  script = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
  lines = [
    {"asin": "1", "title": script, "brand": "<b>A</b>", "description": ["x<br>y", script, "</p>"],
     "category": ["Gift Cards", "</span></span></span>"]},
    {"asin": "2", "title": "<span id='a'>Card &amp; Co</span>", "category": ["</span>"]},
  ]  # fmt: skip
  path.write_text("\n".join(map(json.dumps, lines)))
  assert items("amazon2018", path) == [
    Item("1", None, "A", ["Gift Cards"], "x y"),
    Item("2", "Card & Co"),
  ]


LINES_2023 = [
  {"parent_asin": "1", "title": "Brush", "store": "S", "categories": ["B", "T"], "price": 4.5,
   "description": ["one", "two"], "details": {"Brand": "S"},
   "images": [{"thumb": "t1", "large": "l1", "hi_res": "h1", "variant": "MAIN"},
              {"thumb": "t2", "large": "l2", "hi_res": None, "variant": "PT01"}]},
  {"parent_asin": "2", "title": "Comb", "store": None, "categories": [], "price": None,
   "description": [], "details": "{}", "images": []},
]  # fmt: skip
ITEMS_2023 = [Item("1", "Brush", "S", ["B", "T"], "one two", ["h1", "l2"]), Item("2", "Comb")]


def test_metadata_of_2023_as_json_lines(tmp_path):
  path = tmp_path / "meta.jsonl"
  path.write_text("\n".join(map(json.dumps, LINES_2023)))
  assert items("amazon2023", path) == ITEMS_2023


def test_metadata_of_2023_as_parquet(tmp_path):
  """There images are an object of lists, details a text and the price one too."""
  path = tmp_path / "meta.parquet"
  sizes = ("hi_res", "large", "thumb", "variant")
  rows = [
    {**line, "price": str(line["price"]), "details": json.dumps(line["details"]),
     "images": {s: [image[s] for image in line["images"]] for s in sizes}}
    for line in LINES_2023
  ]  # fmt: skip
  pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
  assert items("amazon2023", path) == ITEMS_2023


def test_reviews_of_2023(tmp_path):
  path = tmp_path / "reviews.jsonl"
  line = {"user_id": "u", "parent_asin": "p", "asin": "child", "timestamp": 1_588_615_855_070,
          "rating": 5.0, "text": "", "title": "", "images": []}  # fmt: skip
  path.write_text(json.dumps(line))
  rows = amazon.read_reviews("amazon2023", path, BadLines())
  found = collect_events([(path, rows)])
  assert found.user_keys == ["u"] and found.item_keys == ["p"] and found.rating_E.tolist() == [5.0]
  assert found.time_E.tolist() == [1_588_615_855] and found.nano_E.tolist() == [70_000_000]


def test_mixed_versions_are_bad_lines(tmp_path):
  path = tmp_path / "reviews.jsonl"
  old = {"reviewerID": "u", "asin": "a", "unixReviewTime": 1_400_000_000}
  new = {"user_id": "u", "parent_asin": "p", "timestamp": 1_588_615_855_070}
  path.write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
  bad = BadLines(1)
  assert len(list(amazon.read_reviews("amazon2018", path, bad))) == 1
  assert bad.quoted == [f"{path}:2: Object missing required field `reviewerID`"]


def test_a_catalogue_keeps_the_first_of_the_items_that_are_asked_for():
  catalogue = Catalogue(["1", "2"])
  catalogue.add([Item("1", "first"), Item("3", "not asked for"), Item("1", "second")])
  assert catalogue["1"].title == "first" and catalogue.duplicates == 1
  assert "2" not in catalogue and catalogue["2"] == Item("2") and "3" not in catalogue


@pytest.mark.parametrize(("field", "there"), [("title", True), ("image", True), ("brand", False)])
def test_what_an_item_has(field, there):
  assert Item("1", "t", "", images=["u"]).has(field) is there
