"""Image files of items: which belongs to whom, by name or by the manifest of a fetch."""

import hashlib
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import read_bytes

MANIFEST = "manifest.jsonl"
OK, FAILED = "ok", "failed"
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif")


def image_suffix(head: bytes) -> str | None:
  """ ".jpg" and its like, by how the file begins; None for what is no image."""
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
  """The key as the name of a file: characters that a path gives a meaning are %-escaped; a long or
  empty one is replaced by its digest."""
  stem = urllib.parse.quote(key, safe=" ()+,;=@[]!'&$")
  if 0 < len(stem) <= 200 and not stem.startswith("."):
    return stem
  return hashlib.sha256(key.encode()).hexdigest()


def is_url(text: str) -> bool:
  return text.lower().startswith(("http://", "https://"))


def first_image(item: Mapping[str, Any]) -> str | None:
  """The first of an item's `images`, a url or a path; None where it has none."""
  images = item.get("images")
  found = [x for x in images if isinstance(x, str) and x] if isinstance(images, list) else []
  return found[0] if found else None


def read_image_manifest(folder: Path) -> dict[str, dict[str, Any]]:
  """The last line of every key, {} without a manifest. A last line that a kill cut short is left
  out. Raises UserError for a line that is no object with a key and a status."""
  path = folder / MANIFEST
  if not path.exists():
    return {}
  whole, _, _ = read_bytes(path).rpartition(b"\n")
  found = {}
  for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
    try:
      entry = json.loads(line)
      if entry["status"] == OK and not isinstance(entry["file"], str):
        raise TypeError("file is not text")
      found[entry["key"]] = entry
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise UserError(
        f"{path}:{number}: expected an object with key, url, file and status ({error!r})"
      ) from None
  return found


def item_image_files(
  folder: Path, keys: Sequence[str], items: Sequence[Mapping[str, Any]]
) -> list[Path | None]:
  """The image file of every item, [I]; None where there is none.

  What the manifest says is fetched; else KEY.jpg and its like in the folder; else the first of the
  item's `images` where that is no url, a path from the folder. Raises UserError for a folder that
  is missing, a manifest that is damaged, and two files of one key.
  """
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; expected the items' images in it")
  fetched = {k: e["file"] for k, e in read_image_manifest(folder).items() if e["status"] == OK}
  named: dict[str, Path] = {}
  wanted = {stem for key in keys if key not in fetched for stem in (key, file_stem(key))}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() in SUFFIXES and path.stem in wanted:
      if other := named.get(path.stem):
        raise UserError(f"{folder}: {other.name} and {path.name} are of one item; keep one")
      named[path.stem] = path
  return [
    folder / fetched[key]
    if key in fetched
    else named.get(key) or named.get(file_stem(key)) or _local_image(folder, item)
    for key, item in zip(keys, items, strict=True)
  ]


def _local_image(folder: Path, item: Mapping[str, Any]) -> Path | None:
  image = first_image(item)
  if image is None or is_url(image):
    return None
  path = folder / image
  inside = path.resolve().is_relative_to(folder.resolve())  # items.jsonl may be somebody else's
  return path if inside and path.is_file() else None
