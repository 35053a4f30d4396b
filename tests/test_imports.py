"""What the package's source promises as a whole, read without running it."""

import ast
import collections
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "mmesid_jax"

# From top to bottom. A module imports from its own folder and from lines further down.
COMMANDS = (
  *("prepare", "encode", "fetch_images", "vectors", "train", "evaluate", "recommend", "export"),
  *("plan", "ablate", "semantic_ids", "cold_start", "refresh", "convert_gguf", "serve"),
  *("push", "pull"),
)
LAYERS = (
  ("__main__",),
  COMMANDS,
  ("experiments",),
  ("pipeline",),
  ("service",),
  ("reports", "serving", "planning"),
  ("stages",),
  ("training",),
  ("features", "ingest", "evaluation"),
  ("hf",),
  ("losses",),
  ("models",),
  ("quantize",),
  ("data",),
  ("files",),
  ("config",),
  ("parallel",),
  ("display",),
  ("errors",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Models know the form of a batch, and nothing else of the data.
DATA_FOR_MODELS = {"data.packing"}

MODULES = {
  ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
    file.read_text(), str(file)
  )
  for file in sorted(PACKAGE.rglob("*.py"))
}


def imported(nodes) -> set[str]:
  """Full names of what these nodes import: `from a import b` is a.b."""
  names: set[str] = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"line {node.lineno}: imports here are absolute"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def our_modules(names: set[str]) -> set[str]:
  """The modules of the package that are imported by these names, without `mmesid_jax.`."""
  found = set()
  for name in names:
    if name.startswith("mmesid_jax."):
      name = name.removeprefix("mmesid_jax.")
      found.add(name if name in MODULES else name.rpartition(".")[0])
  return found


def at_import(node: ast.AST):
  """The nodes that run when the module is imported: no bodies of functions."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
    parts = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
  elif isinstance(node, ast.Lambda):
    parts = [*node.args.defaults, *node.args.kw_defaults]
  else:
    parts = [*ast.iter_child_nodes(node)]
  for part in filter(None, parts):
    yield part
    yield from at_import(part)


IMPORTS = {name: our_modules(imported(ast.walk(tree))) for name, tree in MODULES.items()}
EARLY_IMPORTS = {name: imported(at_import(tree)) for name, tree in MODULES.items()}


def layer(module: str) -> str:
  return module.split(".")[0]


def test_every_module_has_its_place():
  assert {layer(module) for module in MODULES} - {"__init__"} == LEVEL.keys()
  assert IMPORTS.pop("__init__", set()) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_go_down(module):
  for other in IMPORTS[module]:
    ours, theirs = layer(module), layer(other)
    if ours == theirs and ("." in module or other.startswith(f"{module}.")):
      continue  # of the same folder
    assert LEVEL[ours] < LEVEL[theirs], f"{module} imports {other}"
    if ours == "models" and theirs == "data":
      assert other in DATA_FOR_MODELS, f"{module} imports {other}"


def test_no_modules_import_each_other():
  graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("module", ["__main__", *COMMANDS, "config.schema", "ingest.settings"])
def test_a_mistyped_command_is_refused_before_jax_is_loaded(module):
  """Nothing that parsing a command needs imports jax, not even over other modules."""
  heavy = {"jax", "flax", "optax", "orbax", "grain", "numpy"}
  waiting, seen = [module], set()
  while waiting:
    name = waiting.pop()
    seen.add(name)
    assert not {n.split(".")[0] for n in EARLY_IMPORTS[name]} & heavy, name
    waiting += our_modules(EARLY_IMPORTS[name]) - seen


def dotted(node: ast.expr) -> str:
  if isinstance(node, ast.Attribute):
    return f"{dotted(node.value)}.{node.attr}"
  return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("module", MODULES)
def test_importing_does_no_work_on_a_device(module):
  """jax.jit and its like only wrap; anything else of jax, when imported, would start a backend."""
  wrappers = {"jax.jit", "nnx.jit", "jax.vmap", "jax.grad", "jax.named_call"}
  for node in at_import(MODULES[module]):
    if isinstance(node, ast.Call):
      name = dotted(node.func)
      if name.split(".")[0] in ("jax", "jnp", "lax", "nnx", "random", "optax"):
        assert name in wrappers, f"{module}:{node.lineno} calls {name} when it is imported"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled(module):
  """A file that somebody sends must not be able to run code."""
  tree = MODULES[module]
  roots = {name.split(".")[0] for name in imported(ast.walk(tree))}
  assert not roots & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
  for node in ast.walk(tree):
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      assert isinstance(node.value, ast.Constant) and node.value.value is False, module


# Other readers end in tracebacks, or allocate what a damaged header says -> where they are used.
READERS = {
  "np.load": (),
  "np.memmap": ("files.readers", "files.feature_table", "files.resumable"),
  "json.load": (),
  "json.loads": ("files.readers", "config.saved", "hf.chat_template"),  # the last: its own words
  "safetensors.safe_open": ("files.tensor_file",),
  "safetensors.numpy.load_file": (),
  "safetensors.numpy.load": (),
}


@pytest.mark.parametrize("module", MODULES)
def test_files_are_read_by_readers_that_refuse_in_one_line(module):
  for node in ast.walk(MODULES[module]):
    if isinstance(node, ast.Call) and (name := dotted(node.func)) in READERS:
      assert module in READERS[name], f"{module}:{node.lineno}: {name}; see mmesid_jax/files/"


# They let C write, which on a full disk raises errors without a number, or loses the end of a file.
UNSURE_WRITERS = {"save", "savez", "savez_compressed", "savetxt", "tofile", "open_memmap"}


@pytest.mark.parametrize("module", MODULES)
def test_arrays_are_written_by_a_writer_that_notices_a_full_disk(module):
  for node in ast.walk(MODULES[module]):
    if isinstance(node, ast.Attribute) and node.attr in UNSURE_WRITERS:
      is_numpy = node.attr in ("tofile", "open_memmap") or dotted(node).startswith("np.")
      assert not is_numpy, f"{module}:{node.lineno}: see write_array in files/feature_table.py"


# A pipe in the place of a file makes whoever opens it wait for ever -> where `readers` is not used:
# the file is a regular one by a check before, or it was made by the same process.
OPENERS = {
  "read_bytes": ("config.saved", "files.resumable", "stages.backbone"),
  "read_text": ("__main__", "experiments.ablations", "hf.chat_template"),
  "open('rb')": ("files.atomic", "files.rows"),
}


def opener(node: ast.AST) -> str | None:
  """The name of a call of pathlib that reads a file."""
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
    return None
  if node.func.attr in ("read_bytes", "read_text"):
    return node.func.attr
  first = node.args and getattr(node.args[0], "value", None)
  return f"open({first!r})" if node.func.attr == "open" and first in ("r", "rb") else None


@pytest.mark.parametrize("module", MODULES)
def test_no_file_beside_data_is_opened_without_a_look(module):
  for node in ast.walk(MODULES[module]):
    if name := opener(node):
      assert module in OPENERS[name], f"{module}:{node.lineno}: {name}; see files/readers.py"


# What loads a checkpoint with transformers, peft or sentence-transformers, and may run its code.
LOADERS = ("from_pretrained", "get_class_from_dynamic_module", "SentenceTransformer")
BENCHMARKS = {
  f"benchmarks.{file.stem}": ast.parse(file.read_text(), str(file))
  for file in sorted((PACKAGE.parent / "benchmarks").glob("*.py"))
}


@pytest.mark.parametrize("module", [*MODULES, *BENCHMARKS])
def test_no_code_of_a_checkpoint_runs(module):
  """Every loader gets LOCAL_ONLY, with trust_remote_code=False; without it transformers asks."""
  for node in ast.walk({**MODULES, **BENCHMARKS}[module]):
    if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
      assert isinstance(node.value, ast.Constant) and node.value.value is False, module
    if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in LOADERS:
      given = [dotted(keyword.value) for keyword in node.keywords if keyword.arg is None]
      assert given == ["LOCAL_ONLY"], f"{module}:{node.lineno}"


def test_files_are_short_and_named_after_what_they_hold():
  for file in PACKAGE.rglob("*.py"):
    assert len(file.read_text().splitlines()) <= 400, file
    assert file.stem not in ("utils", "util", "helpers", "common", "misc"), file


def test_every_name_of_a_file_stands_once():
  stems = collections.Counter(
    file.stem for file in PACKAGE.rglob("*.py") if not file.stem.startswith("__")
  )
  assert [stem for stem, count in stems.items() if count > 1] == []


def test_folders_are_small():
  for folder in (PACKAGE, *(f.parent for f in PACKAGE.rglob("__init__.py"))):
    entries = [f for f in folder.iterdir() if f.suffix == ".py" and f.stem != "__init__"]
    limit = 14 if folder != PACKAGE else len(COMMANDS) + 3  # pipeline, errors, __main__
    assert len(entries) <= limit, folder


def test_top_level_files_are_commands():
  """Flags, one call, exit: what they do is in the packages."""
  found = {file.stem for file in PACKAGE.glob("*.py")}
  assert found - {"__init__", "__main__"} == {*COMMANDS, "pipeline", "errors"}
