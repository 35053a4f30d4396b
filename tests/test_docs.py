"""The commands and examples in the README and docs/ do what the text says."""

import ast
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from results_table import difference_rows, table_rows
from test_imports import LAYERS

from mmesid_jax import models
from mmesid_jax.config.schema import STAGES, default_config, flat_keys
from mmesid_jax.ingest.settings import default_settings

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
  str(page.relative_to(ROOT)): page.read_text() for page in [ROOT / "README.md", *DOCS.glob("*.md")]
}
GENERATED = PAGES.pop("docs/configuration.md")
NOTEBOOKS = [json.loads(file.read_text()) for file in DOCS.glob("notebooks/*.ipynb")]
# Reads command lines from stdin and prints those that do not parse; each is parsed in a child of
# its own, because a process has one set of flags.
PARSE = """
import json, os, runpy, sys
from mmesid_jax.config import command_line
run = command_line.run_command
command_line.run_command = lambda main, **options: run(lambda argv: None, **options)
for command, *arguments in json.load(sys.stdin):
  child = os.fork()
  if child == 0:
    sys.argv = [command, *arguments]
    runpy.run_module("mmesid_jax." + command, run_name="__main__")
  if os.waitpid(child, 0)[1] != 0:
    print(command, *arguments, flush=True)
"""


def code_blocks(page: str, language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
  """The command lines of the package in a page: the command's name and its arguments."""
  text = re.sub(r"\\\n *", " ", text)
  text = text.replace("launch/slurm.sbatch --", "python -m mmesid_jax.train --")
  found = re.findall(r"(?:python -m mmesid_jax\.|\bmmesid )(\w+)\b(?!\.)([^\n`;|]*)", text)
  lines = [[name, *shlex.split(rest, comments=True)] for name, rest in found]
  return [[word for word in line if not word.endswith("...")] for line in lines]


def slug(heading: str) -> str:
  """The anchor that GitHub and MyST give a heading."""
  return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def environment() -> dict[str, str]:
  return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_from_five_rows_to_a_recommendation(tmp_path):
  """The example of docs/own_data.md, copied and pasted."""
  (script,) = code_blocks("docs/own_data.md", "bash")
  assert script.count("python -m mmesid_jax.") == 3 and "--user_key=bob" in script
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  done = subprocess.run(
    ["bash", "-e", "-c", script],
    cwd=tmp_path,
    env={**environment(), "PATH": path},
    capture_output=True,
    text=True,
    timeout=1_500,
  )
  assert done.returncode == 0, done.stderr
  assert re.search(r"bob had: 1 tea; 2 cup\n +1\. 3 pot +score", done.stdout), done.stdout[-500:]


def test_every_command_line_parses():
  """Its command, its flags and its configuration keys exist, and values have their types."""
  cells = ["".join(cell["source"]) for notebook in NOTEBOOKS for cell in notebook["cells"]]
  lines = [line for text in [*PAGES.values(), *cells] for line in commands(text)]
  assert len(lines) > 30
  done = subprocess.run(
    [sys.executable, "-c", PARSE],
    input=json.dumps(lines),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0 and not done.stdout, f"{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_keys_in_the_prose_exist(page):
  source = "".join(file.read_text() for file in (ROOT / "mmesid_jax").rglob("*.py"))
  flags = set(re.findall(r"(?:DEFINE_\w+|define_paths?)\(\s*\"(\w+)\"", source))
  flags |= {"config", "collaborative"}  # the second of benchmarks/semantic_id_quality.py
  keys = {*flat_keys(default_config()), *flat_keys(default_settings())}
  keys |= {"base.data.dir", "features.audio"}  # of configs/ablations.py; any modality
  for code in re.findall(r"`([^`\n]+)`", PAGES[page]):
    for name in re.findall(r"(?:^| )--([a-z_]+)", code) if code.startswith("--") else ():
      assert name in flags, f"{page}: `{code}`"
    for key in re.findall(r"--config\.([\w.]+)", code):
      assert key in keys, f"{page}: `{code}`"
    if re.fullmatch(r"(recommender|semantic_ids|collaborative|run|data|mesh)\.[a-z_.]+", code):
      if not code.endswith((".json", ".html", ".safetensors")):
        assert code in keys, f"{page}: `{code}`"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  """As GitHub shows the pages; `make docs` checks them in the site."""
  for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
    if "://" in target:
      continue
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), f"{page}: {target}"
    if anchor:
      headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
      assert anchor in map(slug, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
  pattern = r"(?:benchmarks|configs|launch|mmesid_jax|tests)/[\w/.]*\w\.(?:py|sh|sbatch|yaml|md)\b"
  for file in re.findall(pattern, PAGES[page]):
    assert (ROOT / file).is_file(), f"{page}: {file}"


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_parses(page):
  for block in code_blocks(page, "python"):
    ast.parse(block)


def test_the_example_from_python_recommends(trained, capsys):
  """The block that the README and docs/serving.md share, and what the pages say about arrays."""
  (block,) = code_blocks("README.md", "python")
  assert block in PAGES["docs/serving.md"]
  names: dict = {}
  exec(block.replace("runs/beauty", str(trained)).replace("[12, 57, 901]", "[12, 7, 9]"), names)
  assert len(capsys.readouterr().out.splitlines()) == 10
  (call,) = re.findall(r"`(model\.top_items\(.*)`", PAGES["docs/serving.md"])
  names |= {"histories": [[1, 2], [3]], "lengths": np.array([2, 1])}
  assert eval(call, names)[0].shape == (2, 20)


def test_the_example_of_new_items_from_python_recommends_them(trained, monkeypatch):
  from mmesid_jax.serving import Recommender, item_texts

  block, by_texts = code_blocks("docs/new_items.md", "python")
  width = np.load(trained / "synthetic" / "text.npy").shape[1]
  rows = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
  names = {"model": Recommender.load(trained), "rows": rows, "titles": ["a", "b"]}
  exec(block, names)
  answer = names["model"].recommend([[1, 2]], top_k=2)[0]
  assert {r.item for r in answer} == {41, 42} and {r.title for r in answer} == {"a", "b"}
  # the synthetic catalogue has no table that `encode` made
  monkeypatch.setattr(item_texts.ItemTexts, "__init__", lambda self, workdir: None)
  monkeypatch.setattr(
    item_texts.ItemTexts, "vectors", lambda self, items: {"text": rows[: len(items)]}
  )
  exec(by_texts, names)
  assert names["added"] == range(43, 44)


def test_the_example_from_a_data_frame_writes_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (block,) = code_blocks("docs/own_data.md", "python")
  pairs = [(user, item) for user in range(6) for item in range(6)]
  frame = {
    "customer": [f"u{user}" for user, _ in pairs],
    "item": [f"i{item}" for _, item in pairs],
    "time": [100 * user + item for user, item in pairs],
  }
  exec(block, {"frame": frame})
  assert len((tmp_path / "shop" / "sequences.txt").read_text().splitlines()) == 6


def test_the_readme_is_short():
  assert len(PAGES["README.md"].splitlines()) <= 180


def test_results_of_the_readme_are_those_of_the_docs():
  rows = re.findall(r"^\| (?:un)?masked \|.*$", PAGES["README.md"], re.MULTILINE)
  assert len(rows) == 14
  shown = [re.sub(r" \([\d., ]+\)", "", line) for line in PAGES["docs/results.md"].splitlines()]
  for row in rows:
    assert row.replace("**", "") in shown


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "results").glob("*.json")))
def test_results_of_the_docs_are_those_of_the_committed_runs(name):
  results = json.loads((ROOT / "results" / f"{name}.json").read_text())
  assert len(results["seeds"]) == 3
  lines = PAGES["docs/results.md"].splitlines()
  for row in [*table_rows(results), *difference_rows(results)]:
    assert row in lines


def test_the_table_of_packages_is_that_of_the_imports():
  """A row for a layer, with everything that is in it; from top to bottom."""
  rows = re.findall(r"^\| (`.+`) \| .+ \|$", PAGES["docs/design.md"], re.MULTILINE)
  layers = [re.findall(r"`(\w+)/?`", row) for row in rows]
  assert [sorted(layer) for layer in layers[: len(LAYERS)]] == [sorted(names) for names in LAYERS]


def test_the_stages_are_drawn_and_listed_in_their_order():
  """With the numbers that the log of a run has."""
  expected = [(str(n), name.replace("_ids", " IDs")) for n, name in enumerate(STAGES, 1)]
  drawing = (DOCS / "pipeline.svg").read_text()
  assert re.findall(r">(\d)\. ([\w ]+)</text>", drawing) == expected
  page = PAGES["docs/training.md"]
  assert re.findall(r"^(\d)\. \*([\w ]+)\*:", page, re.MULTILINE) == expected


def test_the_page_for_pytorch_names_the_tensors_that_its_test_reads():
  scorer = (ROOT / "tests" / "parity" / "test_scorer.py").read_text()
  names = set(re.findall(r"`model\.([\w.]+)`", PAGES["docs/pytorch.md"]))
  assert len(names) > 7
  for name in names:
    assert name.removesuffix(".weight").removesuffix(".m") in scorer, name


def test_the_legend_of_shapes_is_that_of_the_code():
  legend = re.findall(r"^  [A-Z]  .*$", models.__doc__, re.MULTILINE)
  assert len(legend) > 20 and "\n".join(legend) in PAGES["docs/design.md"]


def test_the_page_of_keys_is_generated():
  done = subprocess.run(
    [sys.executable, "-m", "mmesid_jax.config.explain"],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0, done.stderr
  wanted = "write it again: python -m mmesid_jax.config.explain > docs/configuration.md"
  assert done.stdout == GENERATED, wanted


@pytest.mark.parametrize("name", ["ablations", "options"])
def test_differences_of_the_docs_are_those_of_the_committed_table(name):
  """Rows that compare two protocols with the base are rows of results/NAME/table.md."""
  table = (ROOT / "results" / name / "table.md").read_text()
  masked, unmasked = (
    re.findall(r"\|[^|]+\| 0, 1, 2 \| ([\d.]+) \([^|]*\| ([^|]*?) *\|", half)
    for half in table.split("unmasked:")
  )
  section = {"ablations": "## Ablations", "options": "### Options"}[name]
  lines = PAGES["docs/results.md"].split(f"\n{section}")[1].split("\n#")[0].splitlines()
  rows = [[cell.strip() for cell in line.split("|")[-5:-1]] for line in lines if "] |" in line]
  assert len(rows) > 10
  for *first, mean, difference in rows:
    place = masked.index(tuple(first))
    assert unmasked[place] == (mean, difference)
