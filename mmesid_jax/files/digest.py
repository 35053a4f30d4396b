"""Hexadecimal sha256 digests of files, bytes and JSON values."""

import functools
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmesid_jax.files.readers import open_to_read


def file_sha256(path: Path) -> str:
  """The digest of a file's bytes, without holding them in memory."""
  with open_to_read(path) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes | memoryview) -> str:
  """The digest of these bytes."""
  return hashlib.sha256(content).hexdigest()


def json_sha256(value: Any) -> str:
  """The digest of a value's JSON, keys sorted, so that the order of a mapping does not matter."""
  return bytes_sha256(json.dumps(value, sort_keys=True).encode())


def files_sha256(files: Iterable[Path]) -> str:
  """The digest of the files' names and bytes, in the order of their names.

  Files whose size and times are those of the last call in this process are not read again.
  """

  def digest(path: Path) -> tuple[str, str]:
    stat = path.stat()
    state = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
    return path.name, _sha256(path, *state)

  with ThreadPoolExecutor() as pool:  # as many files at a time as there are cores
    return json_sha256([*pool.map(digest, sorted(files))])


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *state: int) -> str:
  return file_sha256(path)
