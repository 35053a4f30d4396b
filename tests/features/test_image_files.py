import json

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.image_files import (
  file_stem,
  image_suffix,
  item_image_files,
  read_image_manifest,
)


def write_manifest(folder, *entries):
  (folder / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))


def ok(key, file):
  return {"key": key, "url": "http://x", "file": file, "status": "ok"}


def test_the_first_bytes_tell_the_kind_of_image():
  assert image_suffix(b"\xff\xd8\xff\xe0rest") == ".jpg"
  assert image_suffix(b"RIFF\0\0\0\0WEBPVP8") == ".webp"
  assert image_suffix(b"RIFF\0\0\0\0WAVEfmt") is None
  assert image_suffix(b"<html>") is None and image_suffix(b"") is None


def test_keys_become_distinct_names_inside_the_folder():
  keys = ["B001", "a/b", "a%2Fb", "..", ".", "", "../../etc/passwd", "ä" * 300, "ä" * 301, "a b"]
  stems = [file_stem(key) for key in keys]
  assert len(set(stems)) == len(keys)
  assert stems[0] == "B001"
  assert not any("/" in s or s.startswith(".") or not s or len(s) > 200 for s in stems)


def test_the_manifest_comes_first_then_the_name_then_the_path_in_items(tmp_path):
  for name in ("a.jpg", "b.PNG", "c.txt", "shots-1.webp", "e.jpg"):
    (tmp_path / name).write_bytes(b"")
  write_manifest(
    tmp_path,
    ok("a", "other.jpg"),
    {"key": "b", "url": "http://x", "file": None, "status": "failed"},
    {"key": "e", "url": "http://x", "file": None, "status": "failed"},
    ok("e", "fetched.jpg"),
  )
  keys = ["a", "b", "c", "d", "e", "f"]
  items = [{"images": ["http://x/a.jpg"]}] * 3 + [{"images": ["shots-1.webp"]}] * 2 + [{}]
  names = [path and path.name for path in item_image_files(tmp_path, keys, items)]
  assert names == ["other.jpg", "b.PNG", None, "shots-1.webp", "fetched.jpg", None]
  (tmp_path / "b.gif").write_bytes(b"")
  with pytest.raises(UserError, match="b.PNG and b.gif belong to one item"):
    item_image_files(tmp_path, keys, items)
  with pytest.raises(UserError, match="no such folder"):
    item_image_files(tmp_path / "nowhere", keys, items)


def test_an_unfinished_last_line_is_ignored_and_other_damage_is_refused(tmp_path):
  write_manifest(tmp_path, ok("a", "a.jpg"))
  file = tmp_path / "manifest.jsonl"
  file.write_text(file.read_text() + '{"key": "b", "sta')
  assert read_image_manifest(tmp_path).keys() == {"a"}
  for line in ("[]", "{}", "nonsense", '{"key": "a", "status": "ok", "file": 3}'):
    file.write_text(f"{line}\n")
    with pytest.raises(UserError, match="manifest.jsonl:1"):
      read_image_manifest(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "../a.jpg", "/etc/passwd", "\ud800"])
def test_an_item_names_images_of_the_folder_only(tmp_path, name):
  assert item_image_files(tmp_path, ["a"], [{"images": [name]}]) == [None]


@pytest.mark.parametrize(
  "name", ["/etc/passwd", "../a.jpg", "b/../../a.jpg", "sub/a.jpg", "..", ""]
)
def test_the_manifest_names_files_of_its_folder_only(tmp_path, name):
  write_manifest(tmp_path, ok("a", name))
  with pytest.raises(UserError, match="manifest.jsonl:1.*no name of a file in the folder"):
    item_image_files(tmp_path, ["a"], [{}])


def test_a_link_that_leads_to_itself_is_no_image(tmp_path):
  (tmp_path / "loop").symlink_to("loop")
  assert item_image_files(tmp_path, ["a"], [{"images": ["loop"]}]) == [None]
