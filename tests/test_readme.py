"""What the README says to type does what it says."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_from_five_rows_to_a_recommendation(tmp_path):
  """The example of "Use your own data", copied and pasted; only compiling is made quicker."""
  (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  assert script.count("python -m mmesid_jax.") == 3 and "--user_key=bob" in script
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  done = subprocess.run(
    ["bash", "-e", "-c", script],
    cwd=tmp_path,
    env={
      **os.environ,
      "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
    },
    capture_output=True,
    text=True,
    timeout=1_500,
  )
  assert done.returncode == 0, done.stderr
  assert re.search(r"bob had: 1 tea; 2 cup\n +1\. 3 pot +score", done.stdout), done.stdout[-500:]
