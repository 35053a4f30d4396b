"""Files of PyTorch or pickle are read without unpickling.

Here are pickles by Python's own writer, and files in the layout of torch.save.
tests/parity/test_torch_files.py has files that torch wrote.
"""

import collections
import os
import pickle
import random
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pickles
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.torch_file import open_torch_file
from mmesid_jax.features.torch_files.torch_table import read_torch_table

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ARRAYS = {
  "plain": X,
  "transposed": X.T,
  "every second column": np.repeat(X, 2, axis=1)[:, ::2],
  "Fortran order": np.asfortranarray(X),
  "big-endian": X.astype(">f8"),
  "float16": X.astype(np.float16),
  "integers": (100 * X).astype(np.int16),
}
TORCH = pickles.tensor(pickles.storage("0", 12), (4, 3), (3, 1))


def read(path, content: bytes, name=None):
  path = path / "x.bin"
  path.write_bytes(content)
  return read_torch_table(open_torch_file(path), name)


def refused(path, content: bytes, name=None) -> str:
  with pytest.raises(UserError) as caught:
    read(path, content, name)
  message = str(caught.value)
  assert "x.bin" in message and "\n" not in message
  return message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ARRAYS)
def test_numpy_arrays_of_every_protocol(tmp_path, kind, protocol):
  x_NV = ARRAYS[kind]
  nested = {"epoch": np.int64(3), "notes": ["text", None, True, 1.5], "model": [{"items": x_NV}]}
  for content in (x_NV, {"items": x_NV}, collections.OrderedDict(items=x_NV), nested):
    read_NV, keys = read(tmp_path, pickle.dumps(content, protocol))
    np.testing.assert_array_equal(read_NV, x_NV)
    assert read_NV.dtype == x_NV.dtype and keys is None


def test_numpy_1_called_its_modules_by_other_names(tmp_path):
  content = pickle.dumps(X, 2)
  assert b"numpy._core" in content
  read_NV, _ = read(tmp_path, content.replace(b"numpy._core", b"numpy.core"))
  np.testing.assert_array_equal(read_NV, X)


def test_python_2_wrote_bytes_as_text(tmp_path):
  text = X.tobytes()
  assert len(text) < 256
  shape, dtype = pickles.value(X.shape), pickles.call("numpy.dtype", pickles.value("f4"))
  dtype += pickles.value((3, "<", None, None, None, -1, -1, 0)) + b"b"
  raw = b"U" + bytes([len(text)]) + text
  state = b"(" + pickles.value(1) + shape + dtype + pickles.value(False) + raw + b"t"
  begin = pickles.call(
    "numpy.core.multiarray._reconstruct",
    pickles.name("numpy.ndarray"),
    pickles.value((0,)),
    pickles.value("b"),
  )
  read_NV, _ = read(tmp_path, pickles.whole(begin + state + b"b"))
  np.testing.assert_array_equal(read_NV, X)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_vectors_by_key(tmp_path, protocol):
  keys = ["B01", "B02", "7", "é"]
  for vectors in (dict(zip(keys, X, strict=True)), dict(zip(keys, X.tolist(), strict=True))):
    read_NV, read_keys = read(tmp_path, pickle.dumps(vectors, protocol))
    np.testing.assert_array_equal(read_NV, X)
    assert read_keys == keys and read_NV.dtype == np.float32
  by_number = dict(zip([4, 2, 9, 0], X, strict=True))
  assert read(tmp_path, pickle.dumps({"all": by_number}, protocol), "all").keys == [4, 2, 9, 0]
  read_NV, read_keys = read(tmp_path, pickle.dumps(X.tolist(), protocol))
  np.testing.assert_array_equal(read_NV, X)
  assert read_keys is None


@pytest.mark.parametrize("dtype", ["f4", "f2", "bfloat16"])
@pytest.mark.parametrize("form", ["zip", "older", "plain"])
def test_tensors_of_torch(tmp_path, form, dtype):
  """A table and a transposed view of a part of it share one storage."""
  x = X.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  stored = pickles.storage("7", 12, pickles.KINDS[dtype])
  path = tmp_path / "x.bin"
  if form == "plain":
    file = pickles.older(stored, {"7": x})
    stored = pickles.call(
      "torch.storage._load_from_bytes", b"B" + len(file).to_bytes(4, "little") + file
    )
  tensors = pickles.dict_of(
    {
      "all": pickles.tensor(stored, (4, 3), (3, 1)),
      "view": pickles.tensor(stored, (2, 3), (1, 3), 3),
      "one": pickles.call(
        "torch._utils._rebuild_parameter", pickles.tensor(stored, (3,), (1,)), pickles.value(True)
      ),
    }
  )
  tensors += pickles.value({"_metadata": {"": {"version": 1}}}) + b"b"  # of a state dict
  if form == "zip":
    pickles.zipped(path, tensors, {"7": x.tobytes()})
  elif form == "older":
    path.write_bytes(pickles.older(tensors, {"7": x}))
  else:
    path.write_bytes(pickles.whole(tensors))
  saved = open_torch_file(path)
  for name, expected in {"all": x, "view": x[1:, :2].T}.items():
    read_NV, _ = read_torch_table(saved, name)
    assert read_NV.dtype == x.dtype
    np.testing.assert_array_equal(read_NV, expected)
  with pytest.raises(UserError, match=r"--name=TENSOR.*all \[4, 3\], view \[2, 3\], one \[3\]"):
    read_torch_table(saved, None)
  with pytest.raises(UserError, match=r"--name=al: not in .*all \[4, 3\]"):
    read_torch_table(saved, "al")
  with pytest.raises(UserError, match=r"of shape \[3\]; expected numbers of shape"):
    read_torch_table(saved, "one")


class Attack:
  """Calls anything when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "in a dict", "in torch.save"])
def test_a_pickle_cannot_run_code(tmp_path, protocol, place):
  proof = tmp_path / "ran"
  for attack, called in (
    (Attack(os.system, f"touch {proof}"), "system"),
    (Attack(eval, f"open({str(proof)!r}, 'w')"), "eval"),
    (Attack(getattr, X, "tofile"), "getattr"),
    (Attack(os.mkdir, str(proof)), "mkdir"),
  ):
    content = pickle.dumps({"a": X, "b": attack} if place == "in a dict" else attack, protocol)
    if place == "in torch.save":
      content = pickles.older(content.removesuffix(b"."), {})
    says = refused(tmp_path, content)
    assert f"{called}, which could run code" in says and "at byte" in says
    assert not proof.exists()
  pickle.loads(pickle.dumps(Attack(os.system, f"touch {proof}")))
  assert proof.exists(), "the test attacks nothing"


REFUSED = {
  "another global": (
    pickles.whole(pickles.name("torch._utils._rebuild_qtensor")),
    "_rebuild_qtens",
  ),
  "a module": (pickles.whole(pickles.name("posix.system")), "posix.system, which could run code"),
  "a name with dots": (pickles.whole(b"cnumpy\nndarray.__class__\n"), "numpy.ndarray.__class__"),
  "an object": (pickles.whole(b"(cos\nsystem\no"), "os.system"),
  "an instance": (pickles.whole(b"(S'x'\nios\nsystem\n"), "the instruction INST"),
  "a registered extension": (pickles.whole(b"\x82\x01"), "the instruction EXT1"),
  "a call of what is no global": (
    pickles.whole(pickles.value("os") + b")R"),
    "a GlobalName is exp",
  ),
  "a global by another's name": (pickles.whole(b"c\nnumpy.dtype\n"), ".numpy.dtype, which"),
  "objects": (pickle.dumps(np.array([{}, None])), "type 'O8'"),
  "text": (pickle.dumps(np.array(["a", "b"])), "type 'U1'"),
  "a key that is a tuple": (pickle.dumps({(1, 2): X}), "a dict with a key of type tuple"),
  "a set": (pickle.dumps({1, 2}), "the instruction EMPTY_SET"),
  "true and false": (pickle.dumps(X > 0), "bool of shape [4, 3]; expected numbers"),
  "three dimensions": (pickle.dumps(X[None]), "[1, 4, 3]"),
  "no vectors": (pickle.dumps({"a": 1}), "no array or tensor"),
  "ragged": (
    pickle.dumps({"a": X[0], "b": X[0, :2]}),
    "vector 1 is 3 wide, float32; vector 2 is 2",
  ),
  "keys of booleans": (pickle.dumps({True: X[0], False: X[1]}), "a dict with a key of type bool"),
  "two types": (pickle.dumps([X[0], X[0].astype("f8")]), "vector 2 is 3, float64"),
  "an empty table": (
    pickle.dumps(X[:, :0]),
    "[4, 0]; expected numbers of shape [items, width], each at",
  ),
  "empty vectors": (
    pickle.dumps([X[0, :0]]),
    "[1, 0]; expected numbers of shape [items, width], each at",
  ),
  "a large number": (pickle.dumps([[10**400, 1]]), "too large"),
  "nothing": (b"", "is empty"),
  "another kind of file": (b"\x93NUMPY\x01\x00", "at byte 0"),
  "cut off": (pickle.dumps(X)[:-9], "not read, at byte"),
  "two pickles": (pickle.dumps(X) + pickle.dumps(X), "more follows its first pickle"),
  "no numbers": (pickles.whole(TORCH), "without its numbers"),
  "cut off in its numbers": (pickles.older(TORCH, {"0": X})[:-1], "cut off at byte"),
  "other numbers": (pickles.older(TORCH, {"1": X}), "other storages than it lists"),
  "fewer numbers": (pickles.older(TORCH, {"0": X[1:]}), "cut off at byte"),
  "a zip of another kind": (b"PK\3\4" + bytes(50), "not a complete file of PyTorch"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_everything_else_is_refused_in_one_line(tmp_path, kind):
  content, says = REFUSED[kind]
  assert says in refused(tmp_path, content)


@pytest.mark.parametrize("content", [b"a,1,2\n", b"1,2\n", b"\x93NUMPY\1\0", b"PAR1", b'{"k": 1}'])
def test_a_table_of_another_kind_is_named_as_such(tmp_path, content):
  """Bytes of any file can be taken for instructions of a pickle."""
  path = tmp_path / "x.csv"
  path.write_bytes(content)
  with pytest.raises(UserError) as caught:
    open_torch_file(path)
  message = str(caught.value)
  assert message.startswith(f"{path}: not a file of PyTorch or pickle (not read, at byte ")
  assert "`vectors convert` reads .pt, .pth, .bin and .pkl, `vectors join` reads" in message
  assert message.count("x.csv") == 1
  path.write_bytes(pickle.dumps(X))  # the content decides
  np.testing.assert_array_equal(read_torch_table(open_torch_file(path), None)[0], X)


def test_a_zip_file_is_read_only_as_torch_writes_it(tmp_path):
  path = tmp_path / "x.bin"
  for says, storages, more in (
    ("byteorder is compressed", {"0": bytes(48)}, {"compression": zipfile.ZIP_DEFLATED}),
    ("data/0 is missing", {"1": X.tobytes()}, {}),
    ("a shape of [4, 3] from 11 numbers", {"0": X.tobytes()[4:]}, {}),
  ):
    pickles.zipped(path, TORCH, storages, **more)
    assert says in refused(tmp_path, path.read_bytes())
  pickles.zipped(path, TORCH, {"0": X.tobytes()})
  content = path.read_bytes()
  read(tmp_path, content)
  at = content.index(X.tobytes())
  damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
  assert "archive/data/0 is damaged" in refused(tmp_path, damaged)
  assert "not a complete file" in refused(tmp_path, content[:-30])
  pickles.zipped(path, TORCH, {"0": X.tobytes()}, order="big")
  assert "another byte order" in refused(tmp_path, path.read_bytes())


LIES = {  # about places of numbers: each leads out of the storage, or repeats it
  "a shape that is too large": ((5, 3), (3, 1), 0),
  "an offset": ((4, 3), (3, 1), 1),
  "strides": ((4, 3), (4, 1), 0),
  "strides backwards": ((4, 3), (-3, 1), 9),
  "a negative offset": ((4, 3), (3, 1), -1),
  "numbers repeated": ((2**20, 3), (0, 1), 0),
  "sizes beyond 64 bits": ((2**47, 2**47), (0, 0), 0),
  "strides beyond 64 bits": ((2, 3), (2**47, 2**47), 0),
  "more strides than sizes": ((4, 3), (3, 1, 1), 0),
  "no tuple": ([4, 3], (3, 1), 0),
  "a shape of booleans": ((True, True), (3, 1), 0),
  "strides of booleans": ((2, 1), (True, False), 0),
  "an offset that is true": ((2, 3), (3, 1), True),
}


@pytest.mark.parametrize("kind", LIES)
def test_no_number_is_read_from_outside_its_storage(tmp_path, kind):
  shape, strides, offset = LIES[kind]
  tensor = pickles.tensor(pickles.storage("0", 12), shape, strides, offset)
  line = refused(tmp_path, pickles.older(tensor, {"0": X}))
  assert "from 12 numbers" in line or "a size, stride or offset that no array has" in line


def test_numpy_arrays_hold_as_many_numbers_as_they_say(tmp_path):
  content = pickle.dumps(X, 2)
  shape = pickles.value((4, 3))
  assert content.count(shape) == 1
  for wrong in ((5, 3), (2, 3), (2**40, 2**40), (4, -3), (True, 12)):
    assert "not read, at byte" in refused(tmp_path, content.replace(shape, pickles.value(wrong)))


def bombs() -> dict[str, bytes]:
  """Returns small files that ask for much time or memory, unless everything is limited."""
  long, many = 2**18, 2**16
  kept = b"X" + long.to_bytes(4, "little") + bytes(long) + b"q\1"
  encode = pickles.name("_codecs.encode") + b"q\2" + b"(h\1" + pickles.value("latin1") + b"tq\3"
  file = pickles.older(pickles.storage("0", 1) + b"q\1" * long, {"0": X[:1, :1]})
  enclosed = b"B" + len(file).to_bytes(4, "little") + file
  load = pickles.name("torch.storage._load_from_bytes") + b"q\1" + enclosed + b"\x85q\2R"
  rest = b"K\0K\1\x85K\1\x85\x89NtR"
  tensor = pickles.name("torch._utils._rebuild_tensor_v2") + b"q\3(" + load + rest
  again = b"h\3(h\1h\2R" + rest
  numbers = b"(" + b"K\1" * long + b"lq\1"
  row = pickles.tensor(pickles.storage("0", long), (long,), (1,)) + b"q\1"
  ints = b"".join(pickles.value(k * (2**61 - 1)) + b"N" for k in range(1, many))
  puts = b"".join(b"Np%d\n" % (k * (2**61 - 1)) for k in range(1, many))
  laughs = b"]"
  for k in range(12):
    laughs = b"(" + laughs + b"q%c" % k + b"h%c" % k * 99 + b"l"
  pairs = b"N" + b"q\1h\1\x86" * 200 + b"q\2"
  reference = pickles.storage("0", 12, "FloatStorage", b"N" * long).removesuffix(b"Q") + b"q\1Q"
  return {
    "a text made bytes again and again": kept + encode + b"(" + b"h\2h\3R" * many + b"l",
    "a file within, read again and again": b"(" + tensor + again * (many // 4) + b"l",
    "a list that is many vectors": b"(" + numbers + b"h\1" * many + b"l",
    "a tensor that is many vectors": b"(" + row + b"h\1" * many + b"l",
    "integers of one hash": b"}(" + ints + b"u",
    "memo places of one hash": b"(" + puts + b"l",
    "a tuple of itself, hashed": pairs + b"}h\2Ns",
    "lists of the same lists": laughs,
    "a list in itself": b"]q\0h\0a",
    "lists in lists in lists": b"]" * many + b"a" * (many - 1),
    "tuples in tuples in tuples": b")" + b"\x85" * many,
    "a long reference": b"(" + reference + b"h\1Q" * many + b"l",
    "a size before the bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "a long text that says so": b"X\xff\xff\xff\xff",
    "a huge number": b"\x8b" + long.to_bytes(4, "little") + b"\x7f" * long,
    "digits": b"I" + b"9" * long + b"\n",
    "a memo place far away": b"Nr\xff\xff\xff\xff",
    "a long key, many names": b"}" + b"(X" + long.to_bytes(4, "little") + b"a" * long + b"]u",
  }


@pytest.mark.slow
def test_small_files_take_little_time_and_memory(tmp_path):
  """The child is killed where it needs more than 3 GiB or half a minute of computing."""
  for number, (kind, instructions) in enumerate(bombs().items()):
    (tmp_path / f"{number}.bin").write_bytes(pickles.whole(instructions))
    storages = {"0": np.zeros(2**18, np.float32)} if kind == "a tensor that is many vectors" else {}
    (tmp_path / f"{number}.older").write_bytes(pickles.older(instructions, storages))
  program = """
import pathlib, resource, sys
from mmesid_jax.features.torch_files.torch_file import open_torch_file
from mmesid_jax.features.torch_files.torch_table import read_torch_table
from mmesid_jax.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
  print(path.name, flush=True)
  try:
    read_torch_table(open_torch_file(path), None)
  except UserError:
    pass
"""
  child = subprocess.run(
    [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=300
  )
  assert child.returncode == 0, (list(bombs()), child.stdout[-80:], child.stderr[-2000:])


INSTRUCTIONS = b"(.0126FINRTSVXaPbcdehiglorpqstuQ]})BCKMJUGj" + bytes(range(0x80, 0x99))


def mutated(content: bytes, draw: random.Random) -> bytes:
  x = bytearray(content)
  for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
    if not x:
      break
    at, other = draw.randrange(len(x)), draw.randrange(len(x))
    some = bytes(draw.choices(INSTRUCTIONS, k=draw.choice([1, 2, 5])))
    match draw.randrange(8):
      case 0:
        x[at] = draw.randrange(256)
      case 1:
        x[at] = draw.choice(INSTRUCTIONS)
      case 2:
        x[at] ^= 1 << draw.randrange(8)
      case 3:
        del x[at : at + draw.choice([1, 1, 2, 4, 30])]
      case 4:
        x[at:at] = some
      case 5:
        x[at:at] = x[other : other + draw.choice([4, 20, 60])]
      case 6:
        x[at : at + 4] = draw.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)])
      case 7:
        del x[at:]
  return bytes(x)


@pytest.mark.parametrize("examples", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_a_table_or_one_line(tmp_path, examples):
  zipped = tmp_path / "zipped"
  both = pickles.dict_of({"a": TORCH, "b": pickles.tensor(pickles.storage("1", 3), (3,), (1,))})
  pickles.zipped(zipped, both, {"0": X.tobytes(), "1": X[0].tobytes()})
  seeds = [zipped.read_bytes(), pickles.older(both, {"0": X, "1": X[0]})]
  seeds.append(pickles.older(TORCH, {"0": X}))
  for x in (X, X[:, ::2], dict(zip("abcd", X, strict=True)), X.tolist(), {"x": [X], "n": 1}):
    seeds += [pickle.dumps(x, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
  draw, path, tables = random.Random(0), tmp_path / "x.bin", 0
  for _ in range(examples):
    content = mutated(draw.choice(seeds), draw)
    path.write_bytes(content)
    try:
      x_NV, _ = read_torch_table(open_torch_file(path), None)
    except UserError:
      continue
    tables += 1
    assert np.isreal(x_NV.astype(np.float32)).all()  # every number can be touched
  assert 0 < tables < examples / 2
