"""Every reader of files that others may have made, with whole files for `fuzz` to damage."""

import collections
import contextlib
import dataclasses
import gzip
import io
import json
import pathlib
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping

import fuzz_inputs
import grain
import numpy as np
import polars
import safetensors.numpy
import zstandard
from checkpoints import write_tiny_checkpoint
from flax import nnx
from fuzz_inputs import Damage, damage_bytes, damage_json, damage_lines
from gguf_files import gguf_bytes

from mmesid_jax.config import saved
from mmesid_jax.config.schema import default_config
from mmesid_jax.data import features
from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.data.folder import check, tfds_reader, times
from mmesid_jax.data.folder import items as items_of_folder
from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.experiments import ablation_table
from mmesid_jax.features import image_encoder, image_files, keyed_vectors, parquet_vectors
from mmesid_jax.features.torch_files.torch_file import open_torch_file
from mmesid_jax.features.torch_files.torch_table import read_torch_table
from mmesid_jax.files import artifact, provenance
from mmesid_jax.hf import adapter, architecture, gguf_file, prompt, safetensors_dir
from mmesid_jax.ingest import prepared_folder
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.settings import default_settings
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import Llama
from mmesid_jax.reports import shared_workdir, test_ranks
from mmesid_jax.training import checkpoint

ITEMS, USERS = 4, 3
X = np.arange(1, 16, dtype=np.float32).reshape(ITEMS + 1, 3)


@dataclasses.dataclass(frozen=True)
class Reader:
  """A function that reads a folder, whole files for it, and how each of them is damaged.

  It may write into the folder's `out` only. `weight`: its share of all inputs.
  """

  name: str
  weight: float
  read: Callable[[pathlib.Path], object]
  files: Mapping[str, bytes]
  damage: Mapping[str, Damage]  # of these files, one or two at a time
  writes: bool = False  # into its folder, which is then made again


def all_readers() -> list[Reader]:
  """The readers, the cheap ones with the larger shares."""
  return [*quick_readers(), *_checkpoints(), _checkpoint(), _tfds()]


def quick_readers() -> list[Reader]:
  """Those whose whole files are made at once."""
  return [*_tables(), *_texts(), *_events(), *_of_a_workdir()]


def _saved(save: Callable, *values, **named) -> bytes:
  file = io.BytesIO()
  save(file, *values, **named)
  return file.getvalue()


def _json(value: object) -> bytes:
  return json.dumps(value).encode()


def _one(
  name: str, weight: float, file: str, contents: Iterable[bytes], damage: Damage, read: Callable
) -> list[Reader]:
  """Readers of one file that was made in several ways."""
  contents = list(contents)
  share = weight / len(contents)
  return [
    Reader(name, share, lambda folder: read(folder / file), {file: x}, {file: damage})
    for x in contents
  ]


def _drain(vectors: keyed_vectors.KeyedVectors) -> None:
  for chunk in vectors.chunks():
    np.asarray(chunk, np.float32).sum()


def _tables() -> list[Reader]:
  """Tables of vectors."""

  def features_of(path: pathlib.Path) -> None:
    features.feature_width(path, ITEMS)
    features.read_features(path, ITEMS)

  def new_features_of(path: pathlib.Path) -> None:
    features.read_new_features(path, width=3)

  def torch_of(path: pathlib.Path) -> None:
    x_EV, keys = read_torch_table(open_torch_file(path), None)
    x_EV.astype(np.float32).sum()
    json.dumps(keys)

  npy = [_saved(np.save, x) for x in (X, np.asfortranarray(X), X.astype(np.float16), X[1:])]
  tensors = [safetensors.numpy.save({"vectors": x}) for x in (X, X.astype(np.int32))]
  keyed = {key: x for key, x in zip("abcde", X, strict=True)}
  pickles = [
    pickle.dumps(x, protocol)
    for x in (X, X[:, ::2], keyed, X.tolist(), {"x": [X], "n": 1})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
  ]
  frames = [
    polars.DataFrame({"key": list("abcde"), "vector": X.tolist(), "more": [None, 1, 2, 3, 4]}),
    polars.DataFrame({"key": range(5), **{f"v{n}": x for n, x in enumerate(X.T)}}),
  ]
  parquet = [_saved(lambda file, x=x: x.write_parquet(file)) for x in frames]
  keys = [_saved(np.save, np.array(x)) for x in (["a", "é"], [1, 2], [b"a", b"b"])]
  return [
    *_one("npy", 12, "x.npy", npy[:3], fuzz_inputs.damage_npy, features_of),
    *_one("npy", 2, "x.npy", npy[3:], fuzz_inputs.damage_npy, new_features_of),
    *_one("npy", 3, "k.npy", keys, fuzz_inputs.damage_npy, keyed_vectors.read_keys),
    *_one("safetensors", 10, "x.safetensors", tensors, fuzz_inputs.damage_safetensors, features_of),
    *_one(
      "safetensors",
      4,
      "x.safetensors",
      [safetensors.numpy.save(keyed)],
      fuzz_inputs.damage_safetensors,
      lambda path: _drain(keyed_vectors.read_tensor_per_key(path)),
    ),
    *_one("pt and pkl", 14, "x.pt", [*pickles, *_torch_zips()], fuzz_inputs.damage_zip, torch_of),
    *_one(
      "Parquet",
      1,
      "x.parquet",
      parquet,
      damage_bytes,
      lambda path: _drain(parquet_vectors.read_parquet_vectors(path)),
    ),
  ]


def _torch_zips() -> list[bytes]:
  """A file of torch.save: a tensor [5, 3] whose numbers are beside the pickle."""
  numbers = b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x0ft"
  tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + numbers + b"QK\0K\5K\3\x86K\3K\1\x86\x89"
  instructions = b"\x80\2" + tensor + b"ccollections\nOrderedDict\n)RtR."
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name, content in {"data.pkl": instructions, "byteorder": b"little", "data/0": X}.items():
      archive.writestr(zipfile.ZipInfo(f"x/{name}"), bytes(content))
  return [file.getvalue()]


def _texts() -> list[Reader]:
  """A dataset folder, lists of keys, and the manifest of images."""
  items = [
    {"item_id": n, "key": f"i{n}", "title": "a", "categories": ["b", "c"], "images": ["d.jpg"]}
    for n in range(1, ITEMS + 1)
  ]
  users = [{"user_id": n, "key": f"u{n}"} for n in range(1, USERS + 1)]
  folder = {
    "sequences.txt": b"".join(b"%d 1 2 3 4\n" % n for n in range(1, USERS + 1)),
    "items.jsonl": b"".join(_json(x) + b"\n" for x in items),
    "users.jsonl": b"".join(_json(x) + b"\n" for x in users),
    "times.npy": _saved(np.save, np.tile(np.arange(4), USERS)),
    "text.npy": _saved(np.save, X),
  }
  damage = dict.fromkeys(("items.jsonl", "users.jsonl"), damage_lines)
  damage |= {"times.npy": fuzz_inputs.damage_npy, "sequences.txt": damage_bytes}
  damage["text.npy"] = fuzz_inputs.damage_npy
  manifest = [{"key": f"i{n}", "url": "u", "file": "a.jpg", "status": "ok"} for n in range(2)]

  def read_folder(path: pathlib.Path) -> None:
    for problem in check.find_problems(path, ["text.npy"]):
      str(problem)
    dataset = prepare_dataset(path, path / "out")
    dataset.titles()
    times.open_times(path / "times.npy")
    objects = items_of_folder.read_item_objects(path / "items.jsonl")
    image_files.item_image_files(path, item_keys(path), objects)

  def read_manifest(path: pathlib.Path) -> None:
    image_files.read_image_manifest(path)
    image_files.item_image_files(path, ["i0", "i1", "i2"], [{}, {"images": ["a.jpg"]}, {}])

  return [
    Reader("JSON lines of a folder", 4, read_folder, folder, damage),
    Reader(
      "JSON lines of a folder",
      6,
      read_manifest,
      {"manifest.jsonl": b"".join(_json(x) + b"\n" for x in manifest)},
      {"manifest.jsonl": damage_lines},
    ),
    *_one("keys", 4, "k.json", [_json(["a", 1, "é"])], damage_json, keyed_vectors.read_keys),
    *_one("keys", 2, "k.txt", [b"a\nb\nc\n"], damage_bytes, keyed_vectors.read_keys),
    *_one("images", 1, "a.jpg", _images(), damage_bytes, _read_image),
  ]


def _images() -> list[bytes]:
  from PIL import Image

  picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
  return [_saved(picture.save, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]


def _read_image(path: pathlib.Path) -> None:
  with contextlib.suppress(image_encoder.BrokenImage):  # its own error: the row is missing
    image_encoder.read_image(path)


def _events() -> list[Reader]:
  """Raw events and descriptions, of every source, compressed or not."""
  reviews = {
    "amazon2014": {"reviewerID": "u", "asin": "i", "unixReviewTime": 5, "overall": 5.0},
    "amazon2018": {"reviewerID": "u", "asin": "i", "unixReviewTime": 5, "overall": 5.0},
    "amazon2023": {"user_id": "u", "parent_asin": "i", "timestamp": 5000, "rating": 5.0},
    "table": {"user": "u", "item": "i", "time": "2020-01-01T00:00:00Z"},
  }
  described = {
    "amazon2014": {"asin": "i", "title": "a", "categories": [["b", "c"]], "imUrl": "d"},
    "amazon2018": {"asin": "i", "title": "a", "category": ["b"], "imageURL": ["d"]},
    "amazon2023": {"parent_asin": "i", "title": "a", "categories": ["b"], "store": "s"},
    "table": {"item": "i", "title": "a", "brand": "b", "categories": ["c"]},
  }
  readers = []

  def add(kind: str, weight: float, source: str, suffix: str, damage: Damage, *contents) -> None:
    names = f"events{suffix}", f"items{suffix}"

    def read(path: pathlib.Path) -> None:
      settings = default_settings()
      settings.source = settings.metadata_source = source
      settings.max_bad_lines = 2
      settings.events, settings.metadata = (str(path / name) for name in names)
      _, items, _ = prepared_folder.read_raw_files(settings, BadLines(settings.max_bad_lines))
      collections.deque(items, maxlen=0)

    files = dict(zip(names, contents, strict=True))
    readers.append(Reader(kind, weight, read, files, dict.fromkeys(names, damage)))

  for source in reviews:
    events, items = ((_json(x[source]) + b"\n") * 3 for x in (reviews, described))
    add("JSON lines of events", 2, source, ".jsonl", damage_lines, events, items)
    gz = fuzz_inputs.compressed(damage_lines, gzip.compress)
    zst = fuzz_inputs.compressed(damage_lines, zstandard.compress)
    add("gz and zst", 0.5, source, ".jsonl.gz", gz, events, items)
    add("gz and zst", 0.5, source, ".jsonl.zst", zst, events, items)
    rows = [polars.DataFrame([x[source]] * 3) for x in (reviews, described)]
    parquet = [_saved(lambda file, x=x: x.write_parquet(file)) for x in rows]
    add("Parquet", 0.2, source, ".parquet", damage_bytes, *parquet)
  csv = b'user,item,time,rating\nu,i,5,1\n"u ""v",j,6,2\n'
  items = b'item,title,brand,categories\ni,a,b,c|d\nj,"x, y",,\n'
  add("CSV", 5, "table", ".csv", damage_bytes, csv, items)
  tsv = (x.replace(b",", b"\t") for x in (csv, items))
  add("CSV", 3, "table", ".tsv", damage_bytes, *tsv)
  return readers


def _checkpoints() -> list[Reader]:
  """Hugging Face directories: configuration, tokenizer, index, weights, adapter."""

  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder) / "base"
    write_tiny_checkpoint(base)
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    config = architecture.read_architecture(base)
    config = dataclasses.replace(config, lora=LoRAConfig(rank=2, alpha=4.0, targets=("q",)))
    llama = Llama(config, rngs=nnx.Rngs(0))
    keys = safetensors_dir.Checkpoint(base).keys()
    adapter.write_adapter(llama, base / "adapter", base="base")
    adapter_files = {path.name: path.read_bytes() for path in (base / "adapter").iterdir()}
  weights = files.pop(safetensors_dir.SINGLE)
  index = {safetensors_dir.INDEX: _json({"weight_map": dict.fromkeys(keys, "a.safetensors")})}

  def read_weights(path: pathlib.Path) -> None:
    opened = safetensors_dir.Checkpoint(path)
    for key in opened.keys():  # noqa: SIM118
      opened.read(key)

  return [
    Reader(
      "Hugging Face",
      8,
      architecture.read_architecture,
      {"config.json": files["config.json"]},
      {"config.json": damage_json},
    ),
    Reader(
      "Hugging Face",
      1,
      read_weights,
      index | {"a.safetensors": weights},
      {safetensors_dir.INDEX: damage_json, "a.safetensors": fuzz_inputs.damage_safetensors},
    ),
    Reader(
      "Hugging Face",
      0.1,
      lambda path: prompt.tokenize_prompt(path, "a {items} b"),
      files,
      {name: damage_json for name in files if name.endswith(".json")},
    ),
    Reader(
      "Hugging Face",
      4,
      lambda path: adapter.check_adapter(llama, path),
      adapter_files,
      {adapter.CONFIG: damage_json, adapter.WEIGHTS: fuzz_inputs.damage_safetensors},
    ),
    *_one("GGUF", 4, "m.gguf", [gguf_bytes()], damage_bytes, gguf_file.check_gguf),
  ]


def _of_a_workdir() -> list[Reader]:
  """The files of a finished run: configuration, artifacts, checkpoints, ranks, results, logs."""
  settings = default_config()
  settings.data.dir = "somewhere"
  config = settings.to_json_best_effort().encode()
  with tempfile.TemporaryDirectory() as name:
    file = pathlib.Path(name) / "a.safetensors"
    artifact.write_artifact(file, {"a.b": X, "c": X}, {"stage": "x"})
    whole = file.read_bytes()
    header = {"stage": "recommender", "fingerprint": "a", "dataset": "b", "upstream": {}}
    tensors = {"counts": np.arange(ITEMS + 1), "model.items.feature_IV.text": X}
    artifact.write_artifact(file, tensors, header | {"num_items": ITEMS})
    shared = io.BytesIO()
    with zipfile.ZipFile(shared, "w") as archive:
      archive.writestr("config.json", config)
      archive.write(file, "recommender.safetensors")
      archive.writestr("data/sequences.txt", "1 1 2 3\n")
  results = pathlib.Path(__file__).parents[1] / "results" / "ablations"
  result = (results / "no_codes-seed0.json").read_bytes()
  settings = _json({provenance.MADE_FROM: {"a": 1}})

  def read_artifact(path: pathlib.Path) -> None:
    artifact.read_artifact(path, "x", prefix="a.")

  def pull(path: pathlib.Path) -> None:
    shared_workdir.read_shared(path / "w.zip", path / "out")

  return [
    *_one("config.json of a workdir", 2, "config.json", [config], damage_json, _read_saved_config),
    *_one("artifacts", 6, "a.safetensors", [whole], fuzz_inputs.damage_safetensors, read_artifact),
    *_one("artifacts", 2, "r.json", [result], damage_json, ablation_table.read_result),
    *_one("artifacts", 2, "s.json", [settings], damage_json, _read_settings),
    Reader(
      "zip of a workdir",
      2,
      pull,
      {"w.zip": shared.getvalue()},
      {"w.zip": fuzz_inputs.damage_zip},
      writes=True,
    ),
    Reader(
      "artifacts",
      3,
      lambda path: test_ranks.read_ranks(path, "test", "MME-SID"),
      {"ranks/test-MME-SID.npy": _saved(np.save, np.ones((2, 5), np.int32))},
      {"ranks/test-MME-SID.npy": fuzz_inputs.damage_npy},
    ),
  ]


def _checkpoint() -> Reader:
  """A checkpoint of a stage, which Orbax wrote, with the digests of its files."""
  params = {"a": np.arange(6.0)}
  state = {"train": {"params": params}, "best": {"step": np.asarray(1)}}
  data = grain.MapDataset.range(8).to_iter_dataset()
  with tempfile.TemporaryDirectory() as name:
    with checkpoint.Checkpoints(pathlib.Path(name)) as written:
      written.save_best(1, params)
      written.save(1, state, iter(data))
    files = {
      str(p.relative_to(name)): p.read_bytes() for p in pathlib.Path(name).rglob("*") if p.is_file()
    }

  def read(path: pathlib.Path) -> None:
    with checkpoint.Checkpoints(path) as opened:
      if opened.latest is not None:
        opened.restore(state, iter(data))

  damage = {n: damage_json if n.endswith(("json", "METADATA")) else damage_bytes for n in files}
  return Reader("checkpoints", 0.02, read, files, damage, writes=True)


def _read_saved_config(path: pathlib.Path) -> None:
  saved.read_config(path.parent)


def _read_settings(path: pathlib.Path) -> None:
  provenance.check_made_from(path, path.read_bytes(), {"a": 1})


def _tfds() -> Reader:
  """A TensorFlow dataset of `prepare`."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "data"
    rows = [(f"u{n % 3}", f"i{n % 4}", n) for n in range(12)]
    columns = dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True))
    keep = {"core.user": 1, "core.item": 1, "tfds": True}
    prepared_folder.from_dataframe(columns, folder, settings=keep)
    tree = folder / "tfds"
    files = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
  damage = {
    name: damage_json if name.endswith("info.json") else damage_bytes
    for name in files
    if name.endswith("info.json") or "record" in name
  }
  return Reader(
    "TFDS", 0.2, lambda path: tfds_reader.export_plain_files(path, path / "out"), files, damage
  )
