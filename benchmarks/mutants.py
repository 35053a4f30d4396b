"""Breaks one line of the numeric core at a time, and runs the tests that should notice:
python benchmarks/mutants.py --output=runs/mutants [--number=100] [--seed=0]

A mutant is a copy of the repository in which one line differs: another operator, another number, a
condition reversed, a statement or a keyword argument left out. TESTS in mutant_choice.py says which
tests try a file.

Prints a line for every mutant, killed or ALIVE, and the share that was killed; stop it and start it
again as you like, OUTPUT/mutants.jsonl holds the results. Some mutants are no faults: see each
that lives.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl import flags
from mutant_choice import ROOT, TESTS, Mutant, sample_mutants

from mmesid_jax.config import command_line

OUTPUT = flags.DEFINE_string("output", None, "Folder for the copy of the repository and results.")
NUMBER = flags.DEFINE_integer("number", 100, "How many mutants.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of mutants.")
ONLY = flags.DEFINE_string("only", "", "Mutants of files whose name contains this.")
flags.mark_flag_as_required("output")

SECONDS = 1200  # after which a mutant counts as killed: it hangs


def copy_repository(folder: pathlib.Path) -> None:
  """Copies the files that git knows or would take to an empty folder."""
  shutil.rmtree(folder, ignore_errors=True)
  listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
  names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
  for name in filter(None, names.split("\0")):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, folder / name)


def run_tests(folder: pathlib.Path, tests: tuple[str, ...]) -> str:
  """The first test that fails, "" if all pass, "no end" if they do not end."""
  command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
  environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
  try:
    done = subprocess.run(
      [*command, *(f"tests/{test}" for test in tests)],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    return "no end"
  failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
  return "" if done.returncode == 0 else (failed or ["not importable"])[0]


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value).absolute()
  copy, results = output / "copy", output / "mutants.jsonl"
  mutants = sample_mutants(NUMBER.value, SEED.value, ONLY.value)
  copy_repository(copy)
  known = (
    [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else ()
  )
  done = {Mutant(*entry["mutant"]): entry["killed_by"] for entry in known}
  for place, mutant in enumerate(mutants, 1):
    file = copy / "mmesid_jax" / mutant.file
    if mutant not in done:
      text = file.read_text()
      lines = text.splitlines(keepends=True)
      old = lines[mutant.line - 1]
      lines[mutant.line - 1] = old.replace(mutant.before, mutant.after)
      file.write_text("".join(lines))
      done[mutant] = run_tests(copy, TESTS[mutant.file])
      file.write_text(text)
      with results.open("a") as log:
        log.write(json.dumps({"mutant": mutant, "killed_by": done[mutant]}) + "\n")
    verdict = f"killed by {done[mutant]}" if done[mutant] else "ALIVE"
    print(
      f"{place:4} {mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}: {verdict}",
      flush=True,
    )
  killed = sum(bool(done[mutant]) for mutant in mutants)
  print(f"{killed} of {len(mutants)} killed")


if __name__ == "__main__":
  command_line.run_command(main)
