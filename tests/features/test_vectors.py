"""The user's vectors in the order of a data set; an independent join with a dict is the oracle."""

import json
import pathlib

import ml_dtypes
import numpy as np
import polars
import pytest
from commands import refused, run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mmesid_jax.data.features import open_features
from mmesid_jax.errors import UserError
from mmesid_jax.features.join_by_key import join_vectors
from mmesid_jax.files.feature_table import create_table

BEAUTY = pathlib.Path(__file__).parents[3] / "shared" / "data" / "beauty"
KEYS = ["B03", "17", "b 1", "é", "5"]
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
  """A data set of five items."""
  write_items(tmp_path / "data", KEYS)
  return tmp_path / "data"


def write_items(folder: pathlib.Path, keys: list[str], field="key") -> None:
  folder.mkdir(exist_ok=True)
  lines = [json.dumps({"item_id": n, field: key}) for n, key in enumerate(keys, start=1)]
  (folder / "items.jsonl").write_text("\n".join(lines) + "\n")


def join(data, vectors, **changed):
  settings = {"keys": [], "key": "key", "key_column": None, "vector_columns": None}
  settings |= {"dtype": "float32", "missing": "error", "overwrite": True}
  output = changed.pop("output", data / "out.npy")
  vectors = vectors if isinstance(vectors, list) else [vectors]
  join_vectors(data, vectors, output, **settings | changed)
  if output.suffix == ".npy":
    return np.load(output, allow_pickle=False)
  return load_file(output)["vectors"]


def says(text, data, vectors, **changed):
  """The join is refused in one line and leaves no file."""
  before = sorted(data.iterdir())
  with pytest.raises(UserError) as caught:
    join(data, vectors, **changed)
  assert text in str(caught.value) and "\n" not in str(caught.value), caught.value
  assert sorted(data.iterdir()) == before


def frame(keys, x_NV, kind) -> polars.DataFrame:
  if kind == "columns":
    columns = {f"e{n}": x_NV[:, n] for n in range(x_NV.shape[1])}
    return polars.DataFrame({"asin": keys, "price": list(range(len(keys))), **columns})
  vector = polars.Series(x_NV, dtype=polars.Array(polars.Float32, x_NV.shape[1]))
  if kind == "list":
    vector = vector.cast(polars.List(polars.Float32))
  return polars.DataFrame({"vector": vector, "asin": keys, "price": [1.5] * len(keys)})


def written(folder, kind, keys, x_NV) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """A file of vectors, and the file of its keys where it needs one."""
  path = folder / f"{kind.replace(' ', '_')}.vectors"
  if kind in ("list", "array", "columns"):
    frame(keys, x_NV, kind).write_parquet(path := path.with_suffix(".parquet"), row_group_size=3)
    return path, []
  if kind == "a tensor a key":
    save_file(dict(zip(keys, x_NV, strict=True)), path := path.with_suffix(".safetensors"))
    return path, []
  if kind == "safetensors":
    save_file({"x": x_NV}, path := path.with_suffix(".safetensors"))
  else:
    np.save(path := path.with_suffix(".npy"), x_NV)
  names = {"npy, text": "keys.txt", "npy, json": "keys.json", "npy, npy": "keys.npy"}
  keys_path = folder / names.get(kind, "keys.txt")
  if keys_path.suffix == ".npy":
    np.save(keys_path, np.array(keys))
  elif keys_path.suffix == ".json":
    keys_path.write_text(json.dumps([int(key) if key.isdecimal() else key for key in keys]))
  else:
    keys_path.write_text("\r\n".join(keys) if "é" in keys else "\n".join(keys) + "\n")
  return path, [keys_path]


KINDS = ["list", "array", "columns", "a tensor a key", "safetensors"]
KINDS += ["npy, text", "npy, json", "npy, npy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_gets_the_vector_of_its_key(data, kind, capsys):
  order = [3, 0, 4, 2, 1]
  more = np.concatenate([X[order], X[:2] + 1])
  path, keys = written(data, kind, [*(KEYS[n] for n in order), "other", "more"], more)
  table = join(data, path, keys=keys)
  np.testing.assert_array_equal(table, np.concatenate([np.zeros((1, 3)), X]))
  assert table.dtype == np.float32
  out = capsys.readouterr().out
  assert "[6, 3] float32, vectors of 5 of 5 items" in out
  assert "2 keys belong to no item ('other', 'more'): left out" in out or "('more', 'other')" in out


@given(
  catalogue=st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True),
  first=st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True),
  missing=st.sampled_from(["zero", "mean"]),
)
def test_against_a_dict(tmp_path_factory, catalogue, first, missing):
  """Keys of two files, integers in both, some of no item, some items without a vector."""
  data = tmp_path_factory.mktemp("data")
  write_items(data, [str(key) for key in catalogue])
  vectors = {key: np.float32([key + 1, key * key]) for key in first}
  cut = len(first) // 2
  parts = [part for part in (first[:cut], first[cut:]) if part]
  for n, part in enumerate(parts):
    polars.DataFrame({"id": part, "v": [vectors[k].tolist() for k in part]}).write_parquet(
      data / f"{n}.parquet"
    )
  paths = [data / f"{n}.parquet" for n in range(len(parts))]
  known = [vectors[key] for key in catalogue if key in vectors]
  if not known:
    return says("belongs to an item", data, paths, missing=missing)
  table = join(data, paths, missing=missing)
  other = np.mean(known, axis=0, dtype=np.float64) if missing == "mean" else np.zeros(2)
  expected = [np.zeros(2), *(vectors.get(key, other) for key in catalogue)]
  np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_beauty_shuffled_and_joined_is_the_table_byte_for_byte(tmp_path):
  if not (BEAUTY / "text.npy").is_file():
    pytest.skip("the data set Beauty is not beside the repository")
  table = np.load(BEAUTY / "text.npy", allow_pickle=False)
  lines = (BEAUTY / "items.jsonl").read_text().splitlines()
  keys = [json.loads(line)["asin"] for line in lines]
  order = np.random.default_rng(0).permutation(len(keys))
  np.save(tmp_path / "shuffled.npy", table[1:][order])
  (tmp_path / "keys.txt").write_text("\n".join(keys[n] for n in order))
  polars.DataFrame(
    {"asin": [keys[n] for n in order], "v": table[1:][order].astype(np.float32)}
  ).write_parquet(tmp_path / "shuffled.parquet")
  for name, *more in (
    ("shuffled.npy", f"--keys={tmp_path / 'keys.txt'}"),
    ("shuffled.parquet", "--key_column=asin", "--vector_columns=v"),
  ):
    output = tmp_path / "text.npy"
    arguments = [f"--data={BEAUTY}", f"--vectors={tmp_path / name}", f"--output={output}", *more]
    status, out, err = run("vectors", "join", "--key=asin", *arguments)
    assert status == 0, err
    assert "12086 of 12086 items" in out
    assert output.read_bytes() == (BEAUTY / "text.npy").read_bytes()
    output.unlink()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_the_output_is_read_as_a_feature_table(data, dtype, suffix):
  path, keys = written(data, "npy, text", KEYS, X)
  output = data / f"text{suffix}"
  if (dtype, suffix) == ("bfloat16", ".npy"):
    return says("cannot hold bfloat16", data, path, keys=keys, dtype=dtype, output=output)
  join(data, path, keys=keys, dtype=dtype, output=output)
  table = open_features(output, 5, width=3)
  assert table.dtype.name == dtype and not table[0].any()
  kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
  assert table[1:].tobytes() == X.astype(kind).tobytes()


def test_items_without_a_vector(data, capsys):
  path, keys = written(data, "npy, text", KEYS[1:4], X[1:4])
  says("2 of 5 items have no vector ('B03', '5'); --missing=zero", data, path, keys=keys)
  assert not join(data, path, keys=keys, missing="zero")[[0, 1, 5]].any()
  table = join(data, path, keys=keys, missing="mean", dtype="float16")
  np.testing.assert_allclose(table[[1, 5]], [X[1:4].mean(0)] * 2, rtol=2e-3)
  assert not table[0].any()
  assert "2 items had none ('B03', '5'): the mean of the others" in capsys.readouterr().out


def test_a_first_row_of_zeros_is_taken_for_padding(data):
  padded = np.concatenate([np.zeros((1, 3), np.float32), X])
  path, keys = written(data, "npy, text", KEYS, padded)
  np.testing.assert_array_equal(join(data, path, keys=keys), padded)
  np.save(path, padded + 1)
  says("6 rows, but", data, path, keys=keys)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_an_empty_key_is_refused_and_does_not_move_the_others(data, ending, blank):
  """With the row for padding there are as many lines as rows."""
  path, _ = written(data, "npy, text", KEYS, np.concatenate([np.zeros((1, 3), np.float32), X]))
  (data / "keys.txt").write_bytes(b"\xef\xbb\xbf" + ending.join([*KEYS, blank, ""]).encode())
  says("keys.txt:6: the key is empty; expected one", data, path, keys=[data / "keys.txt"])
  (data / "keys.json").write_text(json.dumps([blank, *KEYS]))
  says("keys.json:1: the key is empty; expected one", data, path, keys=[data / "keys.json"])


def test_mistakes_in_tables_with_keys(data):
  for keys, x_NV, text in (
    (KEYS[:4], X, "5 rows, but"),
    ([*KEYS[:4], KEYS[0]], X, "key 'B03' has two vectors, row 0 of"),
    (["x", "y", "z", "v", "w"], X, "its keys, such as 'x', 'y', 'z', ..., belongs to an item"),
    (KEYS, X[0], "a table of shape [3]; expected [items, width]"),
    (KEYS, X[:, :0], "a table of shape [5, 0]; expected [items, width], each at least 1"),
    (KEYS, X.astype(complex), "values of type complex128; expected numbers"),
    (KEYS, np.where(X == X[2, 1], np.nan, X), "row 2, key 'b 1', holds NaN or infinity"),
    (KEYS, np.where(X == X[3, 1], np.inf, X), "row 3, key 'é', holds NaN or infinity"),
  ):
    path, keys = written(data, "npy, text", keys, x_NV)
    says(text, data, path, keys=keys)
  path, keys = written(data, "npy, text", KEYS, 70000 * np.ones_like(X))
  says("a number too large for float16; --dtype=float32", data, path, keys=keys, dtype="float16")
  tiny = X * np.where(np.arange(5) == 3, 1e-9, 1)[:, None].astype(np.float64)
  path, keys = written(data, "npy, text", KEYS, tiny)
  text = "row 3, key 'é', holds only numbers too small for float16; --dtype=float32"
  says(text, data, path, keys=keys, dtype="float16")
  np.testing.assert_array_equal(join(data, path, keys=keys)[1:], tiny.astype(np.float32))
  (data / "out.npy").unlink()
  path, keys = written(data, "npy, text", KEYS, tiny**9)
  says("only numbers too small for float32; scale all vectors", data, path, keys=keys)
  bad = np.where(np.arange(6)[:, None] == 5, np.nan, np.concatenate([X, X[:1]]))
  path, keys = written(data, "npy, text", [*KEYS, "other"], bad)
  np.testing.assert_array_equal(join(data, path, keys=keys)[1:], X)  # of no item: no matter
  path, keys = written(data, "npy, text", KEYS, X)
  wide, _ = written(data, "list", ["another"], np.ones((1, 4), np.float32))
  says("--keys: give it once for every --vectors", data, [path, wide], keys=keys)
  for content, text in (
    (b"", "is empty"),
    (b"\xff\xfe", "is not text"),
  ):
    keys[0].write_bytes(content)
    says(text, data, path, keys=keys)
  for content, text in (
    ("{}", "expected a JSON list"),
    ("[1.5]", "entry 0 of the list is a float"),
    ("[", "not JSON"),
  ):
    (data / "keys.json").write_text(content)
    says(text, data, path, keys=[data / "keys.json"])
  np.save(data / "keys.npy", X)
  says("expected a list of text or integers", data, path, keys=[data / "keys.npy"])
  np.save(data / "keys.npy", np.array(KEYS, object), allow_pickle=True)
  says("it holds python objects", data, path, keys=[data / "keys.npy"])
  np.save(data / "keys.npy", np.full(len(KEYS), 0x110000, np.uint32).view("<U1"))
  says("a key is not Unicode text", data, path, keys=[data / "keys.npy"])
  says("no such file", data, path, keys=[data / "none.txt"])
  says("give them with --keys=FILE", data, path)
  says("first convert", data, data / "x.pt")
  says("no text under 'asin'", data, path, keys=keys, key="asin")
  says("--key_column is for .parquet", data, path, key_column="a")


def test_mistakes_in_parquet(data):
  path = data / "x.parquet"

  def wrong(text, columns, **changed):
    polars.DataFrame(columns).write_parquet(path)
    says(text, data, path, **changed)

  lists = X.tolist()
  wrong("row 3: 2 numbers; row 0 has 3", {"k": KEYS, "v": [*lists[:3], [1.0, 2.0], lists[4]]})
  wrong("row 3: 0 numbers; row 0 has 3", {"k": KEYS, "v": [*lists[:3], None, lists[4]]})
  wrong("row 1: a number is missing", {"k": KEYS, "v": [lists[0], [1.0, None, 2.0], *lists[2:]]})
  wrong("the vector of row 0 is empty", {"k": KEYS, "v": [[], *lists[1:]]}, vector_columns=["v"])
  wrong("row 2 has no key in the column 'k'", {"k": [*KEYS[:2], None, *KEYS[3:]], "v": lists})
  wrong("which column holds the keys? Say --key_column", {"k": KEYS, "title": KEYS, "v": lists})
  wrong("which columns hold the vectors?", {"k": KEYS, "v": lists, "w": lists})
  wrong("which columns hold the vectors?", {"k": KEYS})
  wrong("--key_column=z: not in", {"k": KEYS, "v": lists}, key_column="z")
  wrong("--key_column=v: holds List", {"k": KEYS, "v": lists}, key_column="v")
  wrong("--vector_columns=z*: not in", {"k": KEYS, "v": lists}, vector_columns=["z*"])
  wrong("=v,v: v is named twice", {"k": KEYS, "v": lists}, vector_columns=["v", "v"])
  wrong("'k' holds String", {"i": range(5), "k": KEYS}, key_column="i", vector_columns=["k"])
  wrong("'v' holds List", {"k": KEYS, "v": lists, "w": lists}, vector_columns=["v", "w"])
  wrong(
    "holds no rows", {"k": polars.Series([], dtype=polars.String), "v": polars.Series([1.5])[:0]}
  )
  wrong("row 1, key '17', holds NaN", {"k": KEYS, "a": [1.0, None, 2.0, 3.0, 4.0]})
  content = path.read_bytes()
  for cut in (content[:-20], content[20:], b"", b"PAR1"):
    path.write_bytes(cut)
    says("not a readable Parquet file", data, path)
  path.unlink()
  says("no such file", data, path)
  frame(KEYS, X, "columns").write_parquet(path)
  table = join(data, path, vector_columns=["e?", "price"])
  np.testing.assert_array_equal(table[1:], np.column_stack([X, range(5)]))
  table = join(data, path, vector_columns=["e2", "e*", "price", "e0"])
  np.testing.assert_array_equal(table[1:], np.column_stack([X[:, [2, 0, 1]], range(5)]))


def test_mistakes_in_safetensors(data):
  path = data / "x.safetensors"
  save_file({"a": X[0], "b": X[1, :2].copy()}, path)
  says("tensor 'b' has the shape [2]", data, path)
  save_file({"a": X[0, :0], "b": X[1, :0]}, path)
  says("tensor 'a' has the shape [0]; expected a vector, [width], width at least 1", data, path)
  save_file({"a": X}, path)
  says("give them with --keys=FILE", data, path)
  path.write_bytes(b"x")
  says("not a whole safetensors file", data, path)


def test_a_table_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "x.npy"
  np.save(path, X)
  with pytest.raises(RuntimeError), create_table(path, (5, 3), np.dtype("f4")) as table:
    table[:] = 1
    raise RuntimeError
  np.testing.assert_array_equal(np.load(path), X)
  assert list(tmp_path.iterdir()) == [path]


def test_the_commands(data, tmp_path):
  """From a pickle of vectors by key to a table of the data set."""
  import pickle

  saved, table = tmp_path / "x.pkl", tmp_path / "x.npy"
  saved.write_bytes(pickle.dumps({key: X[n] for n, key in enumerate(KEYS)}))
  status, out, err = run("vectors", "convert", f"--input={saved}", f"--output={table}")
  assert status == 0 and f"{table}: [5, 3] float32" in out, err
  arguments = [f"--data={data}", f"--vectors={table}", f"--output={data / 'text.npy'}"]
  status, out, err = run("vectors", "join", *arguments, f"--keys={tmp_path / 'x.keys.json'}")
  assert status == 0, err
  np.testing.assert_array_equal(np.load(data / "text.npy")[1:], X.astype(np.float16))
  assert "--missing: not a flag of convert" in refused(
    "vectors", "convert", f"--input={saved}", f"--output={table}", "--missing=zero"
  )
  assert "--input and --output are missing; they must be given" in refused("vectors", "convert")
  assert "subcommand" in refused("vectors")
  saved.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
  line = refused("vectors", "convert", f"--input={saved}", f"--output={table}", "--overwrite")
  assert "at byte 0: os.system, which could run code" in line
  assert "unknown kind of output" in refused(
    "vectors", "join", *arguments[:2], f"--output={data / 'text.pt'}"
  )
