"""An artifact with the right digests and the wrong contents ends in one line."""

import itertools
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.serving.refreshed_counts import read_refreshed, refresh_counts
from mmesid_jax.stages import new_item_codes, semantic_id_stage
from mmesid_jax.stages.registry import MODELS
from mmesid_jax.stages.workdir import reopen_workdir

SETTINGS = [f"settings.{name}" for name in ("window", "distance_decay", "recency", "repeats")]
OF_CONTENT = ["settings.text.recency", "settings.text.weight"]
ANY_NUMBER = ["settings.distance_decay", "settings.repeats", "settings.text.weight"]
OF_A_STAGE = ["fingerprint", "dataset", "upstream", "num_items"]
FIELDS = {  # of the header: artifact -> what is read
  "counts": [*OF_A_STAGE, "settings", *SETTINGS],
  "content": [*OF_A_STAGE, "settings", *SETTINGS, *OF_CONTENT],
  "collaborative": OF_A_STAGE,
  "semantic_ids": [*OF_A_STAGE, "health"],
  "recommender": OF_A_STAGE,
  "blend": [*OF_A_STAGE, "upstream.recommender", "settings", *SETTINGS, *OF_CONTENT],
  "refreshed_counts": ["blend", "dataset", "num_items", "users", "events", "settings", *SETTINGS],
  "new_items": ["num_items", "given", "quantizer"],
}


@pytest.fixture(scope="module")
def whole(blended, tmp_path_factory) -> pathlib.Path:
  """A workdir with an artifact of every kind; that of the blend has a reranker."""
  path = pathlib.Path(shutil.copytree(blended, tmp_path_factory.mktemp("runs") / "whole"))
  tensors, header = read_artifact(path / "blend.safetensors", "blend")
  F, H = 10 + 2, 3
  shapes = {"mean_F": F, "factor_F": F, "scale": (), "linear_F": F, "hidden_FH": (F, H)}
  shapes |= {"bias_H": H, "output_H": H}
  tensors |= {f"reranker.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
  write_artifact(path / "blend.safetensors", tensors, header)
  refresh_counts(path, path / "synthetic")
  text = np.load(path / "synthetic" / "text.npy")[[4, 6]]
  new = new_item_codes.encode_new_items(path, read_config(path), {"text": text})
  new_item_codes.write_new_items(path / "new_items.safetensors", new)
  return path


@pytest.fixture
def path(whole, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


def load(path: pathlib.Path, kind: str) -> None:
  """Reads the artifact as the command does that needs it."""
  if kind == "new_items":
    new_item_codes.read_new_items(path / "new_items.safetensors")
  elif kind == "refreshed_counts":
    read_refreshed(path)
  elif kind == "semantic_ids":
    semantic_id_stage.read_semantic_ids(reopen_workdir(path))
    semantic_id_stage.load_mm_rqvae(path, read_config(path))
  else:
    MODELS[kind].load_model(reopen_workdir(path))


def with_field(header: dict, name: str, *value) -> dict:
  """The header with another value of the field, or without it."""
  section, _, key = name.partition(".")
  fields = dict(header[section] if key else header)
  fields.pop(key or section)
  fields |= dict.fromkeys([key or section], *value) if value else {}
  return {**header, section: fields} if key else fields


def damages(kind: str, tensors: dict, header: dict) -> Iterator[tuple[str, str, dict, dict]]:
  """Yields each damage: its kind, the name of its field or tensor, and the damaged contents.

  Each field gets one of the wrong values, and each tensor two of the changes, in turn.
  """
  turn = itertools.count()
  for name in FIELDS[kind]:
    yield "without", name, tensors, with_field(header, name)
    values = (None, [], {"a": 1}, *([] if name in ANY_NUMBER else [-1.5]))
    value = values[next(turn) % len(values)]
    yield f"{value!r} as", name, tensors, with_field(header, name, value)
  ours = [n for n in tensors if not n.startswith("model.") or ".items." in n]
  for name in [*ours, *[n for n in tensors if n not in ours][:1]]:
    x = tensors[name]
    yield "without", name, {n: y for n, y in tensors.items() if n != name}, header
    changed = {"small numbers as": x.astype(np.int8), "two of": np.stack([x, x])}
    if x.ndim:
      changed |= {"one less of": x[:-1], "none of": x[:0]}
    if x.dtype == np.int32:
      changed |= {"too large": np.full_like(x, 10**6), "negative": np.full_like(x, -5)}
    ranges = ["too large", "negative"] if x.dtype == np.int32 else []
    for what in ranges or [list(changed)[next(turn) % len(changed)] for _ in range(2)]:
      yield what, name, {**tensors, name: changed[what]}, header
  more = {f"{name}.x": np.ones(3, np.float32) for name in ("unit", "reranker", "whitening")}
  for name, x in more.items():
    yield "an unknown", name, {**tensors, name: x}, header


@pytest.mark.parametrize("kind", FIELDS)
def test_whatever_is_missing_or_wrong_is_named_in_one_line(path, kind):
  file = path / f"{kind}.safetensors"
  tensors, header = read_artifact(file, kind)
  load(path, kind)
  faults = []
  for what, name, changed, fields in damages(kind, tensors, header):
    if kind == "new_items" and what == "too large":
      continue  # the model says how many codes there are
    file.unlink()
    write_artifact(file, changed, fields)
    try:
      load(path, kind)
      faults.append(f"{what} {name}: taken")
    except UserError as error:
      line = str(error)
      whole = "; " in line or "the configured model" in line or "on one side only" in line
      if str(file) not in line or "\n" in line or not whole:
        faults.append(f"{what} {name}: {line}")
    except Exception as error:  # noqa: BLE001  a traceback is what this is about
      faults.append(f"{what} {name}: {type(error).__name__} {error}")
  assert not faults, "\n".join(faults)


def rewrite(path: pathlib.Path, kind: str, change, **fields) -> None:
  file = path / f"{kind}.safetensors"
  tensors, header = read_artifact(file, kind)
  change(tensors)
  write_artifact(file, tensors, {**header, **fields})


def nothing(tensors: dict) -> None:
  """Leaves them as they are."""


def last_item_out(tensors: dict) -> None:
  for name in ("follower", "count", "share", "trend"):
    tensors[name] = tensors[name][:-1]
  tensors["follower"] = np.minimum(tensors["follower"], 39)


def one_feature_more(tensors: dict) -> None:
  for name in ("mean_F", "factor_F", "linear_F", "hidden_FH"):
    x = tensors[f"reranker.{name}"]
    tensors[f"reranker.{name}"] = np.concatenate([x, x[:1]])


@pytest.mark.parametrize(
  ("kind", "change", "fields", "says"),
  [
    ("refreshed_counts", last_item_out, {"num_items": 39}, "made for another blend"),
    ("refreshed_counts", nothing, {"settings": None}, "made for another blend"),
    ("refreshed_counts", lambda t: t["share"].fill(0), {}, "share holds 0.* expected numbers > 0"),
    ("refreshed_counts", lambda t: t["count"].fill(-1), {}, "count holds -1.* expected numbers >="),
    ("refreshed_counts", lambda t: t["amounts"].fill(2), {}, "amounts .* expected increasing"),
    ("refreshed_counts", lambda t: t["shares"].fill(2), {}, "shares holds 2.* from 0 to 1"),
    ("blend", one_feature_more, {}, "reranker of 13 features, expected 12"),
    ("recommender", nothing, {"num_items": 39}, r"counts is int64 \[41\], expected .*I = 40"),
  ],
)
def test_what_fits_in_itself_must_fit_what_it_is_read_with(path, kind, change, fields, says):
  if "settings" in fields:
    _, header = read_artifact(path / "blend.safetensors", "blend")
    fields = {"settings": {**header["settings"], "tau": 0.7}}
  rewrite(path, kind, change, **fields)
  with pytest.raises(UserError, match=f"{kind}.safetensors: .*{says}.*; "):
    Recommender.load(path)


def test_new_items_know_what_was_given(path):
  rewrite(path, "new_items", nothing, given=["text", "audio"])
  with pytest.raises(UserError, match="new_items.safetensors: given names .*audio.*; run"):
    new_item_codes.read_new_items(path / "new_items.safetensors")


def test_the_line_says_what_was_found_and_what_was_expected(path):
  rewrite(path, "refreshed_counts", lambda t: t["follower"].fill(10**6))
  says = "follower holds 1000000, expected ids from 0 to 40; run mmesid_jax.refresh to write it"
  with pytest.raises(UserError, match=says):
    Recommender.load(path)
  rewrite_all = {"new_items": {"given": 5}, "blend": {"upstream": {}}}
  says = {
    "new_items": "the header has given=5, expected a list of texts",
    "blend": "the header has no upstream.recommender, expected a text",
  }
  for kind, fields in rewrite_all.items():
    rewrite(path, kind, nothing, **fields)
    with pytest.raises(UserError, match=f"{kind}.safetensors: .*{says[kind]}; run mmesid_jax"):
      read_artifact(path / f"{kind}.safetensors", kind)


def test_a_folder_in_the_place_of_an_artifact_is_named(path):
  file = path / "refreshed_counts.safetensors"
  file.unlink()
  file.mkdir()
  for work in (lambda: Recommender.load(path), lambda: refresh_counts(path, path / "synthetic")):
    with pytest.raises(UserError, match=f"{file}: is a folder, expected a file"):
      work()
  assert not [*path.glob(".*.tmp")]
