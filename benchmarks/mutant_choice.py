"""Mutants of the numeric core, and the tests that should notice each; for benchmarks/mutants.py."""

import ast
import itertools
import pathlib
import random
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]

ROWS = ("models/test_packed_rows.py",)
MODEL = (*ROWS, "models/test_extend_catalogue.py", "test_pretrained.py")
CODES = ("models/test_residual_quantizer.py", "models/test_mm_rqvae.py")
GENERATE = ("models/generate/test_decoder.py", "test_heads.py")
# Below mmesid_jax/ -> below tests/, the fastest first.
TESTS = {
  "data/split.py": ("data/test_split.py", "data/test_dataset.py", "test_temporal_split.py"),
  "data/packing.py": ("data/test_packing.py", "data/test_batches.py", *ROWS),
  "data/transitions.py": ("data/test_transitions.py",),
  "data/row_layout.py": ("data/test_packing.py", "data/test_batches.py", *ROWS),
  "data/history_pieces.py": ("data/test_packing.py", "data/test_split.py", *ROWS),
  "ingest/filters.py": ("ingest/test_filters.py", "ingest/test_events.py"),
  "evaluation/ranking.py": (
    *("evaluation/test_ranking.py", "evaluation/test_metrics.py", "evaluation/test_evaluator.py"),
    "evaluation/test_cold_start_ranks.py",
  ),
  "losses/next_item.py": ("losses/test_next_item.py", "models/test_catalogue_scores.py", *ROWS),
  "losses/mmd.py": ("losses/test_mmd.py", "models/test_mm_rqvae.py"),
  "losses/info_nce.py": ("losses/test_info_nce.py", "models/test_mm_rqvae.py"),
  "losses/semantic_id_loss.py": ("models/test_mm_rqvae.py", "stages/test_semantic_id_stage.py"),
  "models/blend.py": ("models/test_blend.py", "stages/test_blend_stage.py"),
  "models/catalogue_scores.py": ("models/test_catalogue_scores.py", "models/test_fusion.py"),
  "models/evidence.py": ("models/test_evidence.py", "stages/test_evidence_stages.py"),
  "models/extend_catalogue.py": ("models/test_extend_catalogue.py", "test_new_items.py"),
  "models/flops.py": ("models/test_flops.py",),
  "models/fsq.py": ("models/test_fsq.py",),
  "models/fusion.py": ("models/test_fusion.py", *MODEL),
  "models/generate/beam_search.py": ("models/generate/test_beam_search.py", *GENERATE),
  "models/generate/decoder.py": GENERATE,
  "models/generate/generated_ranking.py": ("test_heads.py",),
  "models/generate/head.py": ("models/generate/test_head.py", *GENERATE),
  "models/item_encoder.py": ("models/test_fusion.py", "test_code_tables.py", *MODEL),
  "models/layers/attention.py": ("models/layers/test_attention.py", *ROWS),
  "models/layers/linear.py": ("models/layers/test_linear.py", "models/test_fusion.py", *MODEL),
  "models/layers/lora.py": (
    "models/layers/test_lora_config.py",
    "models/layers/test_lora.py",
    "hf/test_adapter.py",
    *MODEL,
  ),
  "models/layers/projection.py": (
    *("models/layers/test_projection.py", "models/test_llama.py", "hf/test_adapter.py", *MODEL),
  ),
  "models/layers/reranker.py": ("models/layers/test_reranker.py", "models/test_blend.py"),
  "models/layers/weight_quantization.py": (
    *("models/layers/test_weight_quantization.py", "hf/test_llama_weights.py"),
  ),
  "models/llama.py": (
    "models/test_llama.py",
    "models/test_rope.py",
    "models/test_dropout_keys.py",
    "hf/test_llama_weights.py",
    "models/test_memory.py",
    *GENERATE,
    *MODEL,
  ),
  "models/mm_rqvae.py": CODES,
  "models/packed_rows.py": ("models/layers/test_attention.py", *ROWS, *GENERATE),
  "models/residual_quantizer.py": CODES,
  "models/sasrec.py": MODEL,
  "models/sequence_recommender.py": MODEL,
  "quantize/item_ids.py": ("quantize/test_item_ids.py", *GENERATE),
  "quantize/id_trie.py": ("quantize/test_item_ids.py", "models/generate/test_beam_search.py"),
  "training/step.py": ("training/test_step.py", "training/test_loop.py", "test_mesh.py"),
  "training/optimizer.py": ("training/test_optimizer.py", "training/test_step.py"),
  "training/checkpoint.py": (
    *("training/test_checkpoint.py", "training/test_disk.py", "training/test_loop.py"),
  ),
  "parallel/sharding.py": ("models/test_catalogue_scores.py", "test_mesh.py"),
  "hf/architecture.py": ("hf/test_architecture.py", "hf/test_safetensors_dir.py"),
  "hf/llama_weights.py": ("hf/test_llama_weights.py", "hf/test_adapter.py", "test_pretrained.py"),
  "hf/safetensors_dir.py": ("hf/test_safetensors_dir.py", "hf/test_llama_weights.py"),
}

OPERATORS = {
  **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")},
  **{ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*")},
  **{ast.MatMult: ("@", "+"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")},
  **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
  **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not")},
  **{ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")},
  **{ast.And: ("and", "or"), ast.Or: ("or", "and")},
}
BUILTINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
METHODS = BUILTINS | {"argmin": "argmax", "argmax": "argmin", "sum": "mean", "mean": "sum"}
METHODS |= {"zeros": "ones", "ones": "zeros"}


class Mutant(NamedTuple):
  """file: below mmesid_jax/. line: from 1. before, after: the line's text."""

  file: str
  line: int
  before: str
  after: str


def find_mutants(file: str, text: str) -> list[Mutant]:
  """All mutants of a file's text, each of one line, in the order of the lines."""
  lines, found = text.splitlines(), set()
  for line, start, stop, new in _changes(ast.parse(text), lines):
    before = lines[line - 1]
    after = before[:start] + new + before[stop:]
    try:
      ast.parse("\n".join([*lines[: line - 1], after, *lines[line:]]))
    except SyntaxError:
      continue
    found.add(Mutant(file, line, before.strip(), after.strip()))
  return sorted(found, key=lambda mutant: (mutant.line, mutant.after))


def _changes(tree: ast.AST, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
  """(line, start, stop, new text) of parts of a line that could be different."""
  for node in _code(tree):
    if isinstance(node, ast.BinOp) and not (_is_text(node.left) or _is_text(node.right)):
      yield from _between(node.left, node.right, node.op, lines)
    elif isinstance(node, ast.BoolOp):
      for left, right in itertools.pairwise(node.values):
        yield from _between(left, right, node.op, lines)
    elif isinstance(node, ast.Compare):
      for left, op, right in zip(
        [node.left, *node.comparators], node.ops, node.comparators, strict=False
      ):
        yield from _between(left, right, op, lines)
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
      x = node.value
      yield from _part(node, f"{not x}" if type(x) is bool else f"{x + 1 if x < 2 else 2 * x}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
      yield from _part(node, ast.unparse(node.operand))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
      yield from _part(node.test, f"(not ({ast.unparse(node.test)}))")
    elif isinstance(node, ast.Attribute | ast.Name):
      is_method = isinstance(node, ast.Attribute)
      name, others = (node.attr, METHODS) if is_method else (node.id, BUILTINS)
      if name in others and node.lineno == node.end_lineno:
        yield node.lineno, node.end_col_offset - len(name), node.end_col_offset, others[name]
    elif isinstance(node, ast.Call):
      arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
      for keyword in node.keywords if len(arguments) > 1 else ():
        end = keyword.end_col_offset
        comma = lines[keyword.end_lineno - 1][end : end + 2]
        yield from _part(keyword, "", 2 if comma == ", " else len(comma.rstrip(" )]}")))
    elif isinstance(node, ast.Expr | ast.AugAssign):
      yield from _part(node, "pass")


def _code(tree: ast.AST) -> Iterator[ast.AST]:
  """The nodes that compute: no annotations, docstrings, assertions or errors, and no axes, as a
  wrong one hardly ever runs."""
  for name, value in ast.iter_fields(tree):
    for node in value if isinstance(value, list) else [value]:
      left_out = ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom
      if not isinstance(node, ast.AST) or isinstance(node, left_out) or _is_text(node):
        continue
      is_axis = isinstance(tree, ast.keyword) and tree.arg in ("axis", "axes", "strict")
      if name not in ("annotation", "returns", "decorator_list") and not is_axis:
        yield node
        yield from _code(node)


def _is_text(node: ast.AST) -> bool:
  node = node.value if isinstance(node, ast.Expr) else node
  return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def _part(node: ast.AST, new: str, more: int = 0) -> Iterator[tuple[int, int, int, str]]:
  if node.lineno == node.end_lineno:
    yield node.lineno, node.col_offset, node.end_col_offset + more, new


def _between(left, right, op, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
  """The operator between two operands."""
  old, new = OPERATORS.get(type(op), ("", ""))
  for line in range(left.end_lineno, right.lineno + 1) if old else ():
    start = left.end_col_offset if line == left.end_lineno else 0
    stop = right.col_offset if line == right.lineno else len(lines[line - 1])
    place = lines[line - 1].find(f"{old}", start, stop)
    if place >= 0:
      yield line, place, place + len(old), new


def sample_mutants(number: int, seed: int, only: str = "") -> list[Mutant]:
  """A random choice out of all mutants of the files of TESTS, the same for the same seed."""
  everything = [
    mutant
    for file in TESTS
    if only in file
    for mutant in find_mutants(file, (ROOT / "mmesid_jax" / file).read_text())
  ]
  return random.Random(seed).sample(everything, min(number, len(everything)))
