"""The published package: files, extras, versions, and the workflow that publishes it."""

import fnmatch
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
import types

import pytest
import yaml

import mmesid_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENTS = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").iterdir())
EXTRA = re.compile(r"(?:[\"' ]\.|mmesid_jax)\[([a-z,]+)\]")


def test_every_file_of_the_package_is_in_the_wheel(monkeypatch):
  """Modules are found by setuptools; other files are only taken if setup.py names them."""
  given = {}
  stand_in = types.ModuleType("setuptools")
  stand_in.setup = given.update
  stand_in.find_namespace_packages = lambda include: []
  monkeypatch.setitem(sys.modules, "setuptools", stand_in)
  runpy.run_path(str(ROOT / "setup.py"))
  others = [
    file
    for file in (ROOT / "mmesid_jax").rglob("*")
    if file.is_file() and file.suffix not in (".py", ".pyc")
  ]
  assert others
  for file in others:
    package = ".".join(file.parent.relative_to(ROOT).parts)
    patterns = given["package_data"].get(package, [])
    assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns), file
  for package, patterns in given["package_data"].items():
    folder = ROOT.joinpath(*package.split("."))
    assert all(any(folder.glob(pattern)) for pattern in patterns), package


def test_the_source_distribution_names_files_that_exist():
  lines = (ROOT / "MANIFEST.in").read_text().splitlines()
  names = [name for line in lines if line.startswith("include ") for name in line.split()[1:]]
  assert names and all((ROOT / name).is_file() for name in names)


def test_the_version_is_the_same_everywhere():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == mmesid_jax.__version__
  assert PROJECT["dynamic"] == ["version", "dependencies"]  # both are read, not repeated


def test_the_changelog_has_a_place_for_the_next_change():
  headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  assert headings[0] == "[Unreleased]"
  assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", name) for name in headings[1:])


def test_the_classifiers_are_the_versions_of_python_in_the_readme():
  versions = {c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c}
  (said,) = re.findall(r"You need Python (3\.\d+) or (3\.\d+)", (ROOT / "README.md").read_text())
  assert versions == set(said)
  assert PROJECT["requires-python"] == f">={said[0]}"


def test_extras_that_are_named_exist():
  texts = [file.read_text() for file in (*DOCUMENTS, *(ROOT / "mmesid_jax").rglob("*.py"))]
  named = {extra for text in texts for names in EXTRA.findall(text) for extra in names.split(",")}
  assert {"gpu", "tpu", "serve", "encode", "notebooks"} <= named
  assert named <= PROJECT["optional-dependencies"].keys()


def test_workflows_are_clean():
  assert WORKFLOWS
  linter = pathlib.Path(sys.executable).parent / "yamllint"
  subprocess.run([linter, "--strict", ROOT / ".github"], check=True, cwd=ROOT)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_have_their_own_permissions_and_actions_a_version(workflow):
  text = workflow.read_text()
  content = yaml.safe_load(text)
  assert content["permissions"] == {}
  assert all("permissions" in job and "timeout-minutes" in job for job in content["jobs"].values())
  actions = re.findall(r"uses: (\S+)", text)
  assert actions and all(re.search(r"@v\d", action) for action in actions), actions


def test_code_of_the_project_never_runs_where_a_job_may_sign_or_publish():
  jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
  trusted = {name for name, job in jobs.items() if "id-token" in job["permissions"]}
  assert trusted == {"attest", "publish"}
  for name in trusted:
    assert all("run" not in step for step in jobs[name]["steps"]), name
  assert jobs["publish"]["environment"] == {"name": "pypi"}
