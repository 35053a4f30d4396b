"""Files that `convert_gguf` refuses, where torch and gguf are not installed. The other tests of the
command are in tests/parity/test_convert_gguf.py."""

import sys

import pytest
from commands import refused
from gguf_files import gguf_bytes

from mmesid_jax.errors import UserError
from mmesid_jax.hf.gguf_file import convert_gguf

FILES = {
  "missing": (None, "no such file"),
  "empty": (b"", "is no GGUF file; it begins with b''"),
  "safetensors": (b"\x10\0\0\0\0\0\0\0{}", r"is no GGUF file; it begins with b'\x10"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_gguf_is_refused(kind, tmp_path):
  content, message = FILES[kind]
  file, output = tmp_path / "model.gguf", tmp_path / "out"
  if content is not None:
    file.write_bytes(content)
  line = refused("convert_gguf", f"--file={file}", f"--output={output}")
  assert line.startswith(f"error: {file}: ") and message in line
  assert not output.exists()


def test_nothing_is_written_over(tmp_path):
  file, output = tmp_path / "model.gguf", tmp_path / "out"
  file.write_bytes(b"GGUF")
  output.mkdir()
  (output / "config.json").write_text("mine")
  with pytest.raises(UserError, match="out: exists already; name a new directory"):
    convert_gguf(file, output)
  assert [f.read_text() for f in output.iterdir()] == ["mine"]


@pytest.mark.parametrize("library", ["torch", "gguf"])
def test_a_library_that_is_missing_is_named_with_its_remedy(library, tmp_path, monkeypatch):
  for name in ("torch", "gguf"):
    monkeypatch.setitem(sys.modules, name, None if name == library else sys)
  (tmp_path / "model.gguf").write_bytes(gguf_bytes())
  with pytest.raises(UserError, match=rf'^{library} is .*: pip install "mmesid_jax\[gguf\]"$'):
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_the_file_must_be_named(tmp_path):
  assert refused("convert_gguf").startswith("error: --file and --output are missing")
