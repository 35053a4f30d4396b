"""Hexadecimal sha256 digests of files, bytes and JSON values."""

import hashlib
import json
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
