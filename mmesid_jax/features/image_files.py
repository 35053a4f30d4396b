"""Finds the image file of every item: by its name, or by the manifest of `fetch_images`."""

import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.files.digest import bytes_sha256
from mmesid_jax.files.readers import parse_json, read_bytes

MANIFEST = "manifest.jsonl"
OK, FAILED = "ok", "failed"
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif")


def image_suffix(head: bytes) -> str | None:
  """Returns ".jpg" or another suffix for the first 16 bytes of an image; None for other files."""
  if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
    return ".webp"
  if head[4:12] in (b"ftypavif", b"ftypavis"):
    return ".avif"
  beginnings = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF87a": ".gif",
    b"GIF89a": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
  }
  return next((suffix for begin, suffix in beginnings.items() if head.startswith(begin)), None)


def file_stem(key: str) -> str:
  """Returns a file name without suffix for an item's key.

  Characters with a meaning in paths are %-escaped. A key that is empty, too long or begins with "."
  is replaced by its sha256.
  """
  stem = urllib.parse.quote(key, safe=" ()+,;=@[]!'&$")
  if 0 < len(stem) <= 200 and not stem.startswith("."):
    return stem
  return bytes_sha256(key.encode())


def is_url(text: str) -> bool:
  """Returns whether the text is an http or https url."""
  return text.lower().startswith(("http://", "https://"))


def first_image(item: Mapping[str, Any]) -> str | None:
  """Returns the first of an item's `images`, a url or a path; None when it has none."""
  images = item.get("images")
  if not isinstance(images, list):
    return None
  return next((image for image in images if isinstance(image, str) and image), None)


def read_image_manifest(folder: Path) -> dict[str, dict[str, Any]]:
  """Reads the manifest of `fetch_images`: the last line of every key; {} without a manifest.

  An unfinished last line, from a killed run, is ignored. Raises UserError for a line that is not an
  object with a key and a status, and for a file that is not in the folder itself.
  """
  path = folder / MANIFEST
  if not path.exists():
    return {}
  complete, _, _ = read_bytes(path).rpartition(b"\n")
  entries = {}
  for number, line in enumerate(complete.split(b"\n") if complete else [], start=1):
    try:
      entry = parse_json(line)
      if entry["status"] == OK and not _is_file_name(entry["file"]):
        raise TypeError("file is no name of a file in the folder")
      entries[entry["key"]] = entry
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path}:{number}: expected an object with key, url, file and status ({error!r})"
      ) from None
  return entries


def _is_file_name(file: object) -> bool:
  """Returns whether it is the bare name of a file: a manifest must not name files elsewhere."""
  return isinstance(file, str) and file not in ("", "..") and Path(file).name == file


def item_image_files(
  folder: Path, keys: Sequence[str], items: Sequence[Mapping[str, Any]]
) -> list[Path | None]:
  """Returns the image file of every item, [I]; None for an item without one.

  It is the file that the manifest lists as fetched; else KEY.jpg (.png, ...) in the folder; else
  the first of the item's `images` if that is a path inside the folder and not a url.

  Raises UserError for a missing folder, a damaged manifest, and two files with the same key.
  """
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; expected the items' images in it")
  fetched = {k: e["file"] for k, e in read_image_manifest(folder).items() if e["status"] == OK}
  by_stem: dict[str, Path] = {}
  wanted = {stem for key in keys if key not in fetched for stem in (key, file_stem(key))}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in SUFFIXES and path.stem in wanted:
      if other := by_stem.get(path.stem):
        raise UserError(f"{folder}: {other.name} and {path.name} belong to one item; keep one")
      by_stem[path.stem] = path
  return [
    folder / fetched[key]
    if key in fetched
    else by_stem.get(key) or by_stem.get(file_stem(key)) or _local_image(folder, item)
    for key, item in zip(keys, items, strict=True)
  ]


def _local_image(folder: Path, item: Mapping[str, Any]) -> Path | None:
  image = first_image(item)
  if image is None or is_url(image):
    return None
  path = folder / image
  try:
    # items.jsonl may come from somebody else, and must not name files outside
    inside = path.resolve().is_relative_to(folder.resolve())
    return path if inside and path.is_file() else None
  except (OSError, ValueError, RuntimeError):  # too long, with a null byte, a circle of links
    return None
