"""The notebooks of docs/notebooks run from top to bottom. They are committed without outputs."""

import json
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_no_outputs_are_committed(notebook):
  content = json.loads(notebook.read_text())
  code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
  assert code and all(not c["outputs"] and c["execution_count"] is None for c in code)
  assert content["metadata"]["kernelspec"]["name"] == "python3"  # no environment of its author


@each_notebook
def test_links_lead_somewhere_and_the_page_lists_it(notebook):
  text = "".join("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"])
  links = re.findall(r"\]\(([^)\s#]+)\)", text)
  assert links and all((notebook.parent / link).is_file() for link in links), links
  assert f"(notebooks/{notebook.name})" in (ROOT / "docs" / "notebooks.md").read_text()


@each_notebook
def test_shell_cells_stop_at_the_first_error(notebook):
  """IPython ignores the status of a line with !, and bash without -e that of all but the last."""
  for cell in json.loads(notebook.read_text())["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "code" and "mmesid " in source:
      assert source.startswith("%%bash -e\n"), source
    assert not re.search(r"^\s*!", source, re.MULTILINE), source


@pytest.mark.slow
@each_notebook
def test_runs(notebook, tmp_path, monkeypatch):
  """Raises the error of the first cell that fails. Its folders are inside tmp_path."""
  nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
  nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
  content = nbformat.read(notebook, as_version=4)
  nbformat.validate(content)
  nbclient.NotebookClient(content, timeout=600, kernel_name="python3").execute()
