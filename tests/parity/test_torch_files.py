"""Files that torch itself wrote, read without it."""

import collections
import pickle

import ml_dtypes
import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.torch_file import open_torch_file
from mmesid_jax.features.torch_files.torch_table import read_torch_table

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

WRITERS = {
  "torch.save": torch.save,
  "torch.save before 1.6": lambda x, path: torch.save(
    x, path, _use_new_zipfile_serialization=False
  ),
  "pickle 2": lambda x, path: path.write_bytes(pickle.dumps(x, 2)),
  "pickle 5": lambda x, path: path.write_bytes(pickle.dumps(x, 5)),
}
DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"]


def numbers(dtype="float32"):
  return (50 * torch.rand(5, 4, generator=torch.Generator().manual_seed(0))).to(
    getattr(torch, dtype)
  )


def as_numpy(tensor) -> np.ndarray:
  if tensor.dtype == torch.bfloat16:
    return tensor.detach().float().numpy().astype(ml_dtypes.bfloat16)
  return tensor.detach().numpy()


@pytest.fixture(params=WRITERS)
def read(request, tmp_path):
  """read(x, name): the table of a file that this writer wrote."""

  def read(x, name=None):
    WRITERS[request.param](x, tmp_path / "x.pt")
    return read_torch_table(open_torch_file(tmp_path / "x.pt"), name)

  return read


def same(read_NV: np.ndarray, tensor) -> None:
  expected = as_numpy(tensor)
  assert read_NV.dtype == expected.dtype
  assert read_NV.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(read, dtype):
  same(read(numbers(dtype)).x_EV, numbers(dtype))


VIEWS = {
  "transposed": lambda x: x.T,
  "rows": lambda x: x[1:4],
  "columns": lambda x: x[:, 1:3],
  "every second row": lambda x: x[::2],
  "of three dimensions": lambda x: x.reshape(5, 2, 2)[:, 1],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_views_of_a_storage(read, kind):
  view = VIEWS[kind](numbers())
  same(read({"model": {"items": [view]}}).x_EV, view)


def test_what_models_and_runs_leave(read):
  embedding = torch.nn.Embedding.from_pretrained(numbers())
  same(read(embedding.state_dict()).x_EV, numbers())
  same(read(torch.nn.Parameter(numbers())).x_EV, numbers())
  model = torch.nn.Sequential(collections.OrderedDict(items=embedding, head=torch.nn.Linear(4, 2)))
  optimizer = torch.optim.Adam(model.head.parameters())
  model.head(numbers()).sum().backward()
  optimizer.step()
  run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
  same(read(run, "model.items.weight").x_EV, numbers())
  with pytest.raises(UserError, match=r"model\.items\.weight \[5, 4\], model\.head\.weight \[2, 4"):
    read(run)


def test_vectors_by_key(read):
  rows = numbers()  # views of one storage
  keys = [f"B{n}" for n in range(5)]
  read_NV, read_keys = read(dict(zip(keys, rows, strict=True)))
  same(read_NV, rows)
  assert read_keys == keys
  same(read(list(rows)).x_EV, rows)


def test_whole_modules_are_refused(read):
  with pytest.raises(UserError, match=r"torch\.nn\.modules\.\S+, which could run code"):
    read(torch.nn.Embedding(5, 4))
