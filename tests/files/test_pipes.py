"""A pipe in the place of a file is refused: whoever opens it would wait for its other end."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mmesid_jax.data.folder import tfds_shards
from mmesid_jax.data.folder.check import check_folder
from mmesid_jax.errors import UserError
from mmesid_jax.features.image_encoder import BrokenImage, read_image
from mmesid_jax.features.image_files import read_image_manifest
from mmesid_jax.features.join_by_key import join_vectors
from mmesid_jax.features.torch_files.torch_table import convert_torch_file
from mmesid_jax.files import digest, parquet_file, provenance, readers, tensor_file
from mmesid_jax.ingest import compressed_lines
from mmesid_jax.training import metrics_log

NAMES = ("sequences.txt", "items.jsonl", "users.jsonl", "times.npy", "text.npy")


@pytest.fixture
def pipe(tmp_path, request):
  path = tmp_path / getattr(request, "param", "pipe")
  os.mkfifo(path)
  return path


# A process: a library may wait for the other end while no thread of Python can run.
OPEN_OTHER_END = """
import os, sys, time
while True:
  time.sleep(5)
  try:
    os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK))
    print("somebody waited", flush=True)
  except OSError:  # nobody waits
    pass
"""


@pytest.fixture(autouse=True)
def _writer(pipe):
  """Fails where a reader waits, and ends its wait, after a while, by opening the other end."""
  command = [sys.executable, "-IS", "-c", OPEN_OTHER_END, str(pipe)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    yield
    process.kill()
    assert process.communicate()[0] == ""


READERS = {
  "bytes": readers.read_bytes,
  "npy": readers.read_npy,
  "json": readers.read_json_object,
  "digest": digest.file_sha256,
  "safetensors": tensor_file.TensorFile,
  "parquet": parquet_file.read_schema,
  "parquet rows": lambda path: next(parquet_file.read_batches(path, ["a"], 1)),
  "lines": lambda path: next(compressed_lines.read_lines(path)),
  "shards": tfds_shards._shard_places,
  "torch": lambda path: convert_torch_file(path, path.with_name("x.npy"), name=None),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_readers_refuse_a_pipe(pipe, read):
  with pytest.raises(UserError, match="pipe: is not a regular file"):
    read(pipe)


def test_an_image_that_is_a_pipe_is_broken(pipe):
  with pytest.raises(BrokenImage, match="not a regular file"):
    read_image(pipe)


def test_a_record_that_is_a_pipe_is_no_record(pipe):
  assert not provenance.is_made_from(pipe, {})


@pytest.mark.parametrize("pipe", ["manifest.jsonl"], indirect=True)
def test_a_manifest(pipe):
  with pytest.raises(UserError, match="is not a regular file"):
    read_image_manifest(pipe.parent)


@pytest.mark.parametrize("pipe", ["metrics.jsonl"], indirect=True)
def test_a_log(pipe):
  with pytest.raises(UserError, match="is not a regular file"):
    metrics_log.read_values(pipe.parent, "loss")
  with pytest.raises(UserError, match="is not a regular file"):
    metrics_log.MetricsLog(pipe.parent, 0)


@pytest.mark.parametrize("pipe", NAMES, indirect=True)
def test_a_folder_with_a_pipe_is_refused(pipe, capsys):
  files = {"sequences.txt": "1 1 2 3\n", "items.jsonl": '{"item_id": 1, "key": "a"}\n' * 3}
  for name, text in files.items():
    if name != pipe.name:
      (pipe.parent / name).write_text(text)
  with pytest.raises(UserError, match="cannot be used for training"):
    check_folder(pipe.parent)
  assert f"{pipe.name}: is not a regular file" in capsys.readouterr().out


def test_keys_that_are_a_pipe(pipe, tmp_path):
  (tmp_path / "items.jsonl").write_text('{"item_id": 1, "key": "a"}\n')
  np.save(tmp_path / "x.npy", np.ones((1, 2)))
  with pytest.raises(UserError, match="is not a regular file"):
    join_vectors(
      tmp_path,
      [tmp_path / "x.npy"],
      tmp_path / "y.npy",
      keys=[pipe],
      key="key",
      key_column=None,
      vector_columns=None,
      dtype="float32",
      missing="error",
    )
