import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.item_template import DEFAULT_TEMPLATE, ItemTemplate, item_texts

SHIRT = {"title": "Shirt", "brand": "Oak", "categories": ["Clothes", "Shirts"], "price": 3.5}
LABELS = "Title: {title}. Brand: {brand}. Categories: {categories}"


@pytest.mark.parametrize(
  ("template", "lacking", "text"),
  [
    (LABELS, (), "Title: Shirt. Brand: Oak. Categories: Clothes, Shirts"),
    (LABELS, ("brand",), "Title: Shirt. Categories: Clothes, Shirts"),
    (LABELS, ("title",), "Brand: Oak. Categories: Clothes, Shirts"),
    (LABELS, ("title", "brand", "categories"), None),
    ("{title}. {brand}. {categories}", ("title",), "Oak. Clothes, Shirts"),
    ("{categories: > } ({price})", (), "Clothes > Shirts (3.5)"),
    ("{{{title}}} {brand}!", (), "{Shirt} Oak!"),
  ],
)
def test_a_missing_field_is_left_out_with_the_text_before_it(template, lacking, text):
  for nothing in (None, "", " ", []):
    assert ItemTemplate(template)(SHIRT | dict.fromkeys(lacking, nothing)) == text
  assert ItemTemplate(template)({k: v for k, v in SHIRT.items() if k not in lacking}) == text


def test_category_paths_are_joined():
  assert ItemTemplate("{categories}")({"categories": [["a", "b"], ["c", None]]}) == "a, b, c"


@pytest.mark.parametrize("template", ["{title", "title", "", "{}", "{title!r}", "a }"])
def test_a_template_without_a_field_is_refused(template):
  with pytest.raises(UserError, match="--template="):
    ItemTemplate(template)


@pytest.mark.parametrize("name", ["titel", "title.__class__", "title[0]"])
def test_a_field_that_no_item_has_is_refused_with_a_list_of_fields(name):
  with pytest.raises(UserError, match="no item has a field .*brand, categories, price, title"):
    item_texts([SHIRT], f"{{{name}}}")
  assert item_texts([SHIRT | {"brand": None}], "{title} {brand}") == ["Shirt"]


def test_the_default_template_takes_the_fields_that_there_are(capsys):
  assert item_texts([{"title": "Cup"}, {"title": None}], DEFAULT_TEMPLATE) == ["Title: Cup", None]
  assert "no item has a field brand or categories; texts are made of the others" in (
    capsys.readouterr().out
  )
  with pytest.raises(UserError, match="no item has a field 'title' \\(name\\)"):
    item_texts([{"name": "Cup"}], DEFAULT_TEMPLATE)
  with pytest.raises(UserError, match="no item has a field 'brand'"):
    item_texts([{"title": "Cup"}], "{title} {brand}")  # somebody chose it
