import hashlib
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.data import dataset as datasets
from mmesid_jax.data.dataset import evaluated_users, popularity, prepare_dataset, read_sequences
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import open_atomic

PLAIN = "7 3 1 2\n9 1\n4 2 2 3 1\n"


def write(directory, sequences=PLAIN, items=None):
  directory.mkdir(exist_ok=True)
  data = sequences if isinstance(sequences, bytes) else sequences.encode()
  (directory / "sequences.txt").write_bytes(data)
  if items is not None:
    (directory / "items.jsonl").write_text(items)
  return directory


def item_lines(count, **changes):
  return "".join(
    json.dumps({"item_id": i, "title": f"t{i}"} | changes) + "\n" for i in range(1, count + 1)
  )


def snapshot(directory):
  return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()}


def test_sequences_users_and_split(tmp_path):
  dataset = prepare_dataset(write(tmp_path / "source"), tmp_path / "cache")
  assert [dataset.sequence(u).tolist() for u in range(len(dataset))] == [
    [3, 1, 2],
    [1],
    [2, 2, 3, 1],
  ]
  assert dataset.users.tolist() == [7, 9, 4]
  assert (dataset.items.dtype, dataset.offsets.dtype, dataset.users.dtype) == ("i4", "i8", "i8")
  assert dataset.num_items == 3
  assert dataset.lengths.tolist() == [3, 1, 4]
  assert dataset.train_lengths.tolist() == [1, 1, 2]
  assert evaluated_users(dataset).tolist() == [0, 2]
  assert dataset.row(4) == 2
  with pytest.raises(UserError, match="user 5: not one of the 3 users"):
    dataset.row(5)
  with pytest.raises(IndexError):
    dataset.sequence(-1)
  with pytest.raises(IndexError):
    dataset.sequence(3)


def test_two_items_are_too_few_to_evaluate(tmp_path):
  dataset = prepare_dataset(write(tmp_path / "source", "1 1 2\n2 1 2 3\n"), tmp_path / "cache")
  assert evaluated_users(dataset).tolist() == [1]
  assert dataset.train_lengths.tolist() == [2, 1]


def test_popularity_counts_the_training_part_only(tmp_path):
  # 3 | 1 | 2 2: of the longer users two items are held out, of the short one none
  dataset = prepare_dataset(write(tmp_path / "source"), tmp_path / "cache")
  assert popularity(dataset).tolist() == [0, 1, 2, 1]


def test_popularity_has_a_place_for_items_nobody_met(tmp_path):
  dataset = prepare_dataset(write(tmp_path / "source", items=item_lines(6)), tmp_path / "cache")
  assert popularity(dataset).tolist() == [0, 1, 2, 1, 0, 0, 0]


users = st.integers(0, 2**63 - 2)
items = st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=12)
blank = st.text(" \t", min_size=1, max_size=3)


@given(
  st.dictionaries(users, items, min_size=1, max_size=8),
  blank,
  st.sampled_from(["\n", "\r\n", " \n"]),
  st.booleans(),
)
def test_whatever_is_written_is_read(tmp_path_factory, histories, space, newline, newline_at_end):
  lines = [space.join(map(str, [user, *history])) for user, history in histories.items()]
  text = newline.join(lines) + (newline if newline_at_end else "")
  path = tmp_path_factory.mktemp("sequences") / "sequences.txt"
  path.write_bytes(text.encode())
  read = read_sequences(path)
  ends = zip(read.offsets[:-1], read.offsets[1:], strict=True)
  assert read.users.tolist() == list(histories)
  assert [read.items[a:b].tolist() for a, b in ends] == list(histories.values())


BAD = {
  "": r"sequences\.txt: is empty",
  " \n\n": r"sequences\.txt: is empty",
  "1 2 3\n2 x 1\n": r"sequences\.txt:2: 'x' is not an integer",
  "1 2 3\n2 1.5 1\n": r"sequences\.txt:2: '1\.5' is not an integer",
  "1 2 3\n2 1_0 1\n": r"sequences\.txt:2: '1_0' is not an integer",
  "1 2,3\n": r"sequences\.txt:1: '2,3' is not an integer",
  b"1 2 3\n2 \xff 1\n": r"sequences\.txt:2: '.' is not an integer",
  "1 \u0661\n": r"sequences\.txt:1: '\u0661' is not an integer",
  "1 2\u20283\n": r"sequences\.txt:1: '2.u20283' is not an integer",
  "-0 2 3\n": r"sequences\.txt:1: user id '-0' is out of range",
  "1 2 3\n\n2 1\n": r"sequences\.txt:2: is blank",
  "1 2 3\n5\n": r"sequences\.txt:2: user 5 has no items",
  "1 2 3\n5": r"sequences\.txt:2: user 5 has no items",
  "1 2 3\n2 1 0\n": r"sequences\.txt:2: item id '0'; ids count from 1",
  "1 2 3\n2 1 -4\n": r"sequences\.txt:2: item id '-4'; ids count from 1",
  "1 2 3\n2 2147483648\n": r"sequences\.txt:2: item id '2147483648'; the largest",
  "1 2 3\n2 " + "9" * 5000 + "\n": r"sequences\.txt:2: item id '9{37}\.\.\.'; the largest",
  "1 2 3\n-2 1\n": r"sequences\.txt:2: user id '-2' is out of range",
  "1 2 3\n9223372036854775808 1\n": r"sequences\.txt:2: user id '9223372036854775808' is out",
  "1 2 3\n2 1\n1 3\n": r"sequences\.txt:3: user 1 is already on line 1",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:24])
def test_bad_sequences_name_file_line_and_token(tmp_path, text):
  source = write(tmp_path / "source", text)
  with pytest.raises(UserError, match=BAD[text]) as caught:
    prepare_dataset(source, tmp_path / "cache")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "cache").exists()


def test_an_item_beyond_the_catalogue(tmp_path):
  source = write(tmp_path / "source", items=item_lines(2))
  with pytest.raises(
    UserError, match=r"sequences\.txt:1: item id '3', but items\.jsonl holds only 2"
  ):
    prepare_dataset(source, tmp_path / "cache")
  assert not (tmp_path / "cache").exists()


def test_missing_sources(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory"):
    prepare_dataset(tmp_path / "nowhere", tmp_path / "cache")
  with pytest.raises(UserError, match=r"sequences\.txt: no such file"):
    prepare_dataset(tmp_path, tmp_path / "cache")
  (tmp_path / "sequences.txt").mkdir()
  with pytest.raises(UserError, match=r"sequences\.txt: cannot be read"):
    prepare_dataset(tmp_path, tmp_path / "cache")
  assert not (tmp_path / "cache").exists()


BAD_ITEMS = {
  "": r"items\.jsonl: is empty",
  item_lines(2) + "{'item_id': 3}\n": r"items\.jsonl:3: not JSON",
  item_lines(2) + "[" * 100_000: r"items\.jsonl:3: not JSON",
  item_lines(2) + "\n" + '{"item_id": 3}\n': r"items\.jsonl:3: not JSON",
  item_lines(2) + "3\n": r'items\.jsonl:3: expected an object with "item_id": 3',
  item_lines(2) + '{"item_id": 4}\n': r'items\.jsonl:3: .* "item_id": 3, .*, found \'4\'',
  item_lines(2) + '{"title": "c"}\n': r"items\.jsonl:3: .*found 'null'",
  '{"item_id": true}\n': r"items\.jsonl:1: .*found 'true'",
  item_lines(2) + '{"item_id": 3, "title": 5}\n': r"items\.jsonl:3: title is '5', not a string",
}


@pytest.mark.parametrize("text", BAD_ITEMS, ids=lambda text: repr(text)[-24:])
def test_bad_items_name_file_and_line(tmp_path, text):
  source = write(tmp_path / "source", items=text)
  with pytest.raises(UserError, match=BAD_ITEMS[text]) as caught:
    prepare_dataset(source, tmp_path / "cache")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "cache").exists()


def test_titles(tmp_path):
  lines = '{"item_id": 1, "title": "Café"}\n{"item_id": 2, "title": null}\n{"item_id": 3}\n'
  source = write(tmp_path / "source", items=lines)
  dataset = prepare_dataset(source, tmp_path / "cache")
  assert dataset.titles() == [None, "Café", None, None]
  (source / "items.jsonl").write_text(item_lines(2))
  with pytest.raises(UserError, match="2 items; the dataset was prepared for 3"):
    dataset.titles()


def described(tmp_path, *categories):
  lines = [json.dumps({"item_id": i, "categories": c}) for i, c in enumerate(categories, start=1)]
  source = write(tmp_path / "source", items="\n".join(lines) + "\n")
  return prepare_dataset(source, tmp_path / "cache")


def test_categories_are_the_first_level_that_tells_items_apart(tmp_path):
  """All are "Beauty"; the second level differs, and a shorter path has its last name there."""
  dataset = described(
    tmp_path, ["Beauty", "Hair", "Combs"], ["Beauty", "Skin", "Face"], None, ["Beauty"], []
  )
  assert dataset.categories() == [None, "Hair", "Skin", None, "Beauty", None]


def test_categories_of_other_forms(tmp_path):
  """One name, or several paths, of which the first counts; here the first level differs."""
  dataset = described(tmp_path, "Comedy", [["Drama", "War"], ["Comedy"]], ["Drama", "Crime"])
  assert dataset.categories() == [None, "Comedy", "Drama", "Drama"]


def test_a_stray_root_does_not_hide_the_level_below(tmp_path):
  names = [["Toys", f"kind {i % 3}"] for i in range(30)]
  dataset = described(tmp_path, *names, ["Baby", "kind 0"])
  assert set(dataset.categories()[1:]) == {"kind 0", "kind 1", "kind 2"}


def test_items_that_no_level_tells_apart_are_of_one_category(tmp_path):
  dataset = described(tmp_path, ["Gifts", "Cards"], ["Gifts", "Cards"], ["Gifts", "Cards"])
  assert dataset.categories() == [None, "Cards", "Cards", "Cards"]


@pytest.mark.parametrize("categories", [3, {"a": 1}, ["a", 2], [["a"], "b"], [[1]]])
def test_categories_of_no_such_form_name_the_line(tmp_path, categories):
  with pytest.raises(UserError, match=r"items.jsonl:2: categories is .*expected a list of names"):
    described(tmp_path, None, categories, None)


def test_no_titles_without_items(tmp_path):
  dataset = prepare_dataset(write(tmp_path / "source"), tmp_path / "cache")
  assert dataset.items_path is None
  assert dataset.titles() == dataset.categories() == [None] * 4


def test_an_unchanged_source_re_uses_the_cache_memory_mapped(tmp_path):
  source = write(tmp_path / "source", items=item_lines(3))
  first = prepare_dataset(source, tmp_path / "cache")
  before = snapshot(tmp_path / "cache")
  os.utime(source / "sequences.txt", (1, 1))  # the content counts, not the clock
  second = prepare_dataset(source, tmp_path / "cache")
  assert snapshot(tmp_path / "cache") == before
  assert sorted(before) == ["dataset.json", "items.npy", "offsets.npy", "users.npy"]
  assert isinstance(second.items, np.memmap)
  assert second.fingerprint == first.fingerprint
  np.testing.assert_array_equal(second.items, first.items)
  with pytest.raises(ValueError, match="read-only"):
    second.items[0] = 1


def test_a_changed_source_is_parsed_anew_and_the_old_dataset_stays_readable(tmp_path):
  source = write(tmp_path / "source")
  old = prepare_dataset(source, tmp_path / "cache")
  new = prepare_dataset(write(source, PLAIN.replace("9 1", "9 2")), tmp_path / "cache")
  assert new.sequence(1).tolist() == [2]
  assert old.sequence(1).tolist() == [1]
  assert new.fingerprint != old.fingerprint


@pytest.mark.parametrize(
  ("sequences", "items"),
  [(PLAIN.replace("7 ", "8 "), None), ("7 3 1 2 1\n9 2\n4 2 3 1\n", None), (PLAIN, item_lines(4))],
)
def test_the_fingerprint_knows_users_boundaries_and_catalogue(tmp_path, sequences, items):
  plain = prepare_dataset(write(tmp_path / "a"), tmp_path / "a_cache")
  other = prepare_dataset(write(tmp_path / "b", sequences, items), tmp_path / "b_cache")
  assert plain.fingerprint != other.fingerprint
  same = prepare_dataset(
    write(tmp_path / "c", PLAIN.replace(" ", "\t"), item_lines(3)), tmp_path / "c_c"
  )
  assert plain.fingerprint == same.fingerprint


def test_a_bad_change_leaves_the_cache_as_it_was(tmp_path):
  source = write(tmp_path / "source")
  prepare_dataset(source, tmp_path / "cache")
  before = snapshot(tmp_path / "cache")
  with pytest.raises(UserError):
    prepare_dataset(write(source, "1 x\n"), tmp_path / "cache")
  assert snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize("name", ["dataset.json", "items.npy", "offsets.npy", "users.npy"])
@pytest.mark.parametrize("keep", [None, 0, 60], ids=["gone", "empty", "truncated"])
def test_a_damaged_cache_is_built_again(tmp_path, name, keep):
  source = write(tmp_path / "source")
  good = prepare_dataset(source, tmp_path / "cache")
  expected = {n: d for n, (_, d) in snapshot(tmp_path / "cache").items()}
  path = tmp_path / "cache" / name
  data = path.read_bytes()
  path.unlink()
  if keep is not None:
    path.write_bytes(data[:keep])
  again = prepare_dataset(source, tmp_path / "cache")
  assert {n: d for n, (_, d) in snapshot(tmp_path / "cache").items()} == expected
  assert again.fingerprint == good.fingerprint


def change(cache, name, edit):
  array = np.load(cache / f"{name}.npy")
  np.save(cache / f"{name}.npy", edit(array))


def edit_header(cache, **changes):
  header = json.loads((cache / "dataset.json").read_text())
  (cache / "dataset.json").write_text(json.dumps(header | changes))


@pytest.mark.parametrize(
  "edit",
  [
    lambda cache: change(cache, "items", lambda x: x[::-1]),
    lambda cache: change(cache, "items", lambda x: np.where(np.arange(len(x)) == 0, 10**6, x)),
    lambda cache: change(cache, "users", lambda x: x[::-1]),
    lambda cache: change(cache, "offsets", lambda x: x * 0),
    lambda cache: change(cache, "times", lambda x: x + 1),
    lambda cache: edit_header(cache, fingerprint="0" * 64),
    lambda cache: edit_header(cache, times="0" * 64),
    lambda cache: edit_header(cache, num_items=9),
  ],
)
def test_a_cache_that_is_not_as_it_was_written_is_made_again(tmp_path, capsys, edit):
  source = write(tmp_path / "source")
  np.save(source / "times.npy", np.int64([1, 2, 6, 4, 0, 1, 2, 6]))
  good = prepare_dataset(source, tmp_path / "cache", (0.3, 0.7))
  expected = {n: d for n, (_, d) in snapshot(tmp_path / "cache").items()}
  edit(tmp_path / "cache")
  again = prepare_dataset(source, tmp_path / "cache", (0.3, 0.7))
  assert {n: d for n, (_, d) in snapshot(tmp_path / "cache").items()} == expected
  assert again.fingerprint == good.fingerprint
  err = capsys.readouterr().err
  assert err == f"warning: {tmp_path}/cache: not as it was written; made again from the data\n"
  prepare_dataset(source, tmp_path / "cache", (0.3, 0.7))
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "array"),
  [
    ("items", np.int32([3, 1, 2, 1, 2, 2, 3, 10**6])),
    ("items", np.int32([3, 1, 2, 1, 2, 2, 3, 0])),
    ("items", np.zeros(0, np.int32)),
    ("items", np.float32([3, 1, 2, 1, 2, 2, 3, 1])),
    ("items", np.ones((8, 1), np.int32)),
    ("offsets", np.int64([0, 3, 2, 8])),
    ("offsets", np.int64([0, 3, 4, 9])),
    ("offsets", np.int64([])),
    ("users", np.int64([7, 9])),
  ],
)
def test_a_cache_with_digests_of_arrays_that_no_data_set_has_is_made_again(tmp_path, name, array):
  """A workdir may come from a stranger, who can count digests too."""
  source = write(tmp_path / "source")
  good = prepare_dataset(source, tmp_path / "cache")
  arrays = {n: np.load(tmp_path / "cache" / f"{n}.npy") for n in ("items", "offsets", "users")}
  key = json.loads((tmp_path / "cache" / "dataset.json").read_text())
  key = {n: key[n] for n in ("schema", "sources")}
  datasets._store(tmp_path / "cache", key, arrays | {name: array}, good.num_items)
  again = prepare_dataset(source, tmp_path / "cache")
  assert again.fingerprint == good.fingerprint
  assert again.items.tolist() == [3, 1, 2, 1, 2, 2, 3, 1]


def test_an_interrupted_write_leaves_no_valid_cache_and_no_litter(tmp_path, monkeypatch):
  source = write(tmp_path / "source")
  saved = []

  def full_disk(path, array):
    saved.append(len(array))
    with open_atomic(path) as file:
      np.save(file, array)
      if len(saved) == 2:
        raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(datasets, "write_array", full_disk)
    with pytest.raises(UserError, match="cache/items.npy: no space left on device"):
      prepare_dataset(source, tmp_path / "cache")
  assert [p.name for p in (tmp_path / "cache").iterdir()] == ["users.npy"]
  assert prepare_dataset(source, tmp_path / "cache").sequence(0).tolist() == [3, 1, 2]


def test_an_interrupted_rewrite_is_not_taken_for_the_old_cache(tmp_path, monkeypatch):
  source = write(tmp_path / "source", "1 1 2\n")
  prepare_dataset(source, tmp_path / "cache")

  def only_users(path, array):
    if path.name != "users.npy":
      raise UserError(f"{path}: no space left on device")
    np.save(path, array)

  with monkeypatch.context() as patch, pytest.raises(UserError):
    patch.setattr(datasets, "write_array", only_users)
    prepare_dataset(write(source, "5 2 1\n"), tmp_path / "cache")
  assert prepare_dataset(write(source, "1 1 2\n"), tmp_path / "cache").users.tolist() == [1]


def test_a_cache_file_of_another_dataset_is_noticed(tmp_path):
  source = write(tmp_path / "source")
  prepare_dataset(source, tmp_path / "cache")
  np.save(tmp_path / "cache" / "items.npy", np.ones(5, np.int32))
  assert prepare_dataset(source, tmp_path / "cache").sequence(2).tolist() == [2, 2, 3, 1]


def test_a_source_is_only_read_and_a_cache_that_cannot_be_made_says_so(tmp_path):
  source = write(tmp_path / "source", items=item_lines(3))
  before = snapshot(source)
  prepare_dataset(source, tmp_path / "cache")
  assert snapshot(source) == before
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file: cannot write the dataset's cache"):
    prepare_dataset(source, tmp_path / "file")


def test_the_fingerprint_is_the_documented_hash(tmp_path):
  """Artifacts of other runs carry it: it must not change by accident."""
  dataset = prepare_dataset(write(tmp_path / "source"), tmp_path / "cache")
  digest = hashlib.sha256(b"3 3\n")
  digest.update(np.array([7, 9, 4], "<i8").tobytes())
  digest.update(np.array([0, 3, 4, 8], "<i8").tobytes())
  digest.update(np.array([3, 1, 2, 1, 2, 2, 3, 1], "<i4").tobytes())
  assert dataset.fingerprint == digest.hexdigest()
