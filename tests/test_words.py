"""The words of the package: a reader for whom English is a second language never stops."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "mmesid_jax").rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))
BRITISH = re.compile(
  r"quantis|standardis|normalis|tokenis|centre|colour|behaviour|optimis|initialis|maximis|"
  r"minimis|summaris|recognis|serialis"
)
ODD = re.compile(r"\b(behind|anew|whose rows these are|so many|lies where)\b")


def docstrings(file: pathlib.Path):
  """(name, docstring) of the module, its classes and its functions."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      if text := ast.get_docstring(node):
        yield getattr(node, "name", "module"), text


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_words(file):
  for name, text in docstrings(file):
    first = text.split("\n\n")[0].split("\n")[0]
    assert len(first) <= 100, name
    assert not re.match(r"(What|Of)\b", first), f"{name}: begins with {first.split()[0]}"
    assert not ODD.search(text), f"{name}: {ODD.search(text)[0]}"
  # an old spelling of a flag is still understood
  source = "\n".join(x for x in file.read_text().splitlines() if "DEFINE_alias" not in x)
  assert not BRITISH.search(source), BRITISH.search(source)[0]
