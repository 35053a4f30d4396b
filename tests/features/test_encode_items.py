"""Runs of `encode` that are stopped, with an encoder that does not need torch."""

import json
import types

import numpy as np
import pytest

from mmesid_jax.errors import Interrupted
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
