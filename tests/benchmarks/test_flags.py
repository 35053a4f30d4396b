"""Scripts that tests import define no flag at import: two of one name cannot be in one process."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = {script.stem: script for script in (ROOT / "benchmarks").glob("*.py")}


def imported_by_tests() -> set[str]:
  """The scripts that a test names in an import, or as the argument of a call that imports."""
  names: set[str] = set()
  for test in (ROOT / "tests").rglob("*.py"):
    for node in ast.walk(ast.parse(test.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add(str(node.module))
      elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "importorskip")
      ):
        names |= {str(value.value) for value in node.args if isinstance(value, ast.Constant)}
  return names & SCRIPTS.keys()


def test_imported_scripts_define_no_flags():
  found = imported_by_tests()
  assert found >= {"fuzz", "index_recall", "torch_server"}
  for name in found:
    for node in ast.parse(SCRIPTS[name].read_text()).body:
      assert isinstance(node, ast.If) or "DEFINE" not in ast.unparse(node), f"{name}:{node.lineno}"
