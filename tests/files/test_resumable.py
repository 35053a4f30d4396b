"""A file made part by part: begun, left, gone on with, or refused."""

import pathlib

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.resumable import PartFiles

SETTINGS = {"top_k": 10, "model": "a1", "columns": ["n"]}


def begun(tmp_path, settings=SETTINGS) -> PartFiles:
  return PartFiles(tmp_path / "out.jsonl", 3, settings)


def write(parts: PartFiles, n: int) -> None:
  parts.write(n, {"n": int}, {"n": [10 * n, 10 * n + 1]})


def test_what_is_missing_is_made_and_the_folder_goes(tmp_path):
  parts = begun(tmp_path)
  assert parts.missing() == [0, 1, 2]
  write(parts, 1)
  again = begun(tmp_path)
  assert again.missing() == [0, 2]
  assert not (tmp_path / "out.jsonl").exists()
  write(again, 2)
  write(again, 0)
  again.finish()
  assert [f.name for f in tmp_path.iterdir()] == ["out.jsonl"]
  numbers = "".join(f'{{"n":{n}}}\n' for n in (0, 1, 10, 11, 20, 21))
  assert (tmp_path / "out.jsonl").read_text() == numbers


@pytest.mark.parametrize(
  ("changed", "says"),
  [({"top_k": 20}, "top_k was 10, now 20"), ({"new items": "b"}, "new items was not set, now 'b'")],
)
def test_parts_of_other_settings_are_refused_and_stay(tmp_path, changed, says):
  write(begun(tmp_path), 0)
  with pytest.raises(UserError, match=f"{says}; finish that one .* or delete the folder"):
    begun(tmp_path, SETTINGS | changed)
  assert begun(tmp_path).missing() == [1, 2]


def test_a_folder_that_somebody_else_made_is_never_removed(tmp_path):
  folder = tmp_path / "out.jsonl.parts"
  folder.mkdir()
  (folder / "settings.json.17.tmp").touch()  # of a run that was killed as it began
  (folder / "lock").touch()
  (folder / "thesis.tex").touch()
  with pytest.raises(UserError, match=r"holds thesis.tex and no settings.json"):
    begun(tmp_path)
  (folder / "thesis.tex").unlink()
  assert begun(tmp_path).missing() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_after_a_kill_at_the_very_end_only_its_own_output_is_replaced(
  tmp_path, monkeypatch, suffix
):
  def begin() -> PartFiles:
    return PartFiles(tmp_path / f"out{suffix}", 3, SETTINGS)

  output, parts = tmp_path / f"out{suffix}", begin()
  for n in parts.missing():
    write(parts, n)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    parts.finish()
  own = output.read_bytes()
  output.write_text("mine")
  with pytest.raises(UserError, match="^--output=.*: exists already; .* or pass --overwrite"):
    begin()
  assert output.read_text() == "mine" and not parts.missing()
  output.write_bytes(own)
  begin().finish()
  assert output.read_bytes() == own and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_settings_that_are_not_readable_are_refused(tmp_path, text):
  write(begun(tmp_path), 0)
  (tmp_path / "out.jsonl.parts" / "settings.json").write_text(text)
  with pytest.raises(UserError, match=r"settings.json: is not as it was written; delete"):
    begun(tmp_path)


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path):
  (tmp_path / "victim").mkdir()
  (tmp_path / "out.jsonl.parts").symlink_to(tmp_path / "victim")
  with pytest.raises(UserError, match="out.jsonl.parts: is a symbolic link, which is not followed"):
    begun(tmp_path)
  assert not list((tmp_path / "victim").iterdir())
