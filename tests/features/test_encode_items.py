"""Runs of `encode` that are stopped, with an encoder that does not need torch."""

import dataclasses
import json
import os
import types

import numpy as np
import pytest

from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.features import encode_items as module
from mmesid_jax.features.encode_items import EncodeSettings, encode_items

WIDTH = 3


class Encoder:
  """Vectors that tell the item; raises what a signal does before the row `stop_at`."""

  stop_at: int | None

  def __init__(self, _, texts, *, batch, **__):
    self.order, self.batch, self.width = np.arange(len(texts)), batch, WIDTH
    self.work, self.unit, self.device = np.ones(len(texts), int), "tokens", "cpu"
    self.num_at_limit, self.made_from = 0, {"texts": texts}

  def batches(self, start):
    for at in range(start, len(self.order), self.batch):
      if at == self.stop_at:
        raise KeyboardInterrupt("SIGTERM")  # as mmesid_jax.config.process_end does
      rows = self.order[at : at + self.batch, None] + 1.0
      yield np.repeat(rows, WIDTH, axis=1).astype(np.float32)


@pytest.fixture
def settings(tmp_path, monkeypatch):
  lines = [{"item_id": i, "key": f"k{i}", "title": f"title {i}"} for i in range(1, 11)]
  (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  monkeypatch.setattr(module, "TextEncoder", Encoder)
  monkeypatch.setattr(module, "model_sha256", lambda _: "0")
  monkeypatch.setattr(module, "import_extra", lambda _: types.SimpleNamespace(__version__="1"))
  return EncodeSettings(
    data=tmp_path,
    modality="text",
    model=tmp_path,
    output=tmp_path / "text.npy",
    batch=4,
    normalize=False,
  )


def test_a_stopped_run_says_so_and_goes_on(settings, monkeypatch):
  monkeypatch.setattr(Encoder, "stop_at", 4, raising=False)
  expected = "SIGTERM with 4 of 10 items encoded, kept in .*; run the same command again"
  with pytest.raises(Interrupted, match=expected):
    encode_items(settings)
  assert not settings.output.exists()
  monkeypatch.setattr(Encoder, "stop_at", None)
  encode_items(settings)
  assert np.load(settings.output)[:, 0].tolist() == list(range(11))


@pytest.mark.parametrize("stop_at", [4, None])
def test_a_table_of_somebody_else_beside_waiting_rows_stays(settings, monkeypatch, stop_at):
  """Whether the rows are some or all: then the disk was full when the table was to be written."""

  def full_disk(*_):
    raise OSError("full")

  with monkeypatch.context() as stopped:
    stopped.setattr(Encoder, "stop_at", stop_at, raising=False)
    stopped.setattr(module, "write_filled_table", full_disk)
    with pytest.raises((Interrupted, OSError)):
      encode_items(settings)
  monkeypatch.setattr(Encoder, "stop_at", None, raising=False)
  settings.output.write_text("mine")
  with pytest.raises(UserError, match="text.npy: does not say what it was made from; choose"):
    encode_items(settings)
  assert settings.output.read_text() == "mine"
  encode_items(dataclasses.replace(settings, overwrite=True))
  assert np.load(settings.output)[:, 0].tolist() == list(range(11))


@pytest.mark.parametrize("name", ["text.json", "text.npy", "text.npy.partial"])
def test_a_run_that_was_killed_as_it_ended_is_finished_without_overwrite(
  settings, monkeypatch, name
):
  """Its own table is not taken for that of somebody else, wherever it was killed."""
  monkeypatch.setattr(Encoder, "stop_at", None, raising=False)

  def kill_at(call, place):
    def killed(*arguments, **options):
      if str(arguments[place]).endswith(name):
        raise KeyboardInterrupt
      return call(*arguments, **options)

    return killed

  with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
    killed.setattr(os, "replace", kill_at(os.replace, 1))
    killed.setattr(type(settings.output), "unlink", kill_at(type(settings.output).unlink, 0))
    encode_items(settings)
  encode_items(settings)
  assert np.load(settings.output)[:, 0].tolist() == list(range(11))
  assert {f.name for f in settings.data.iterdir()} == {"items.jsonl", "text.npy", "text.json"}


@pytest.mark.parametrize("content", ['{"name": "shop"}', '["made_from"]', "no JSON", ""])
def test_a_file_of_another_program_is_not_taken_for_the_record(settings, content):
  record = settings.data / "package.json"
  record.write_text(content)
  output = settings.data / "package.npy"
  with pytest.raises(UserError, match="package.json: would be replaced by the record of package.n"):
    encode_items(dataclasses.replace(settings, output=output, overwrite=True))
  assert record.read_text() == content and not output.exists()


def test_a_file_of_the_data_set_is_no_table(settings):
  times = settings.data / "times.npy"
  for content in (None, b"mine"):
    if content:
      times.write_bytes(content)
    with pytest.raises(UserError, match="times.npy is a name of the data set's own; take another"):
      encode_items(dataclasses.replace(settings, output=times, overwrite=True))
  assert times.read_bytes() == b"mine"


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_numbers_that_the_type_cannot_hold_are_refused(settings, monkeypatch, size):
  def batches(self, start):
    yield np.full((4, WIDTH), size, np.float32)

  monkeypatch.setattr(Encoder, "batches", batches)
  with pytest.raises(UserError, match="--dtype=float16: cannot hold these vectors; take float32"):
    encode_items(dataclasses.replace(settings, dtype="float16"))
