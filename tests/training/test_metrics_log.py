"""What is logged is the same in both places; a resumed run takes back what it comes by again."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mmesid_jax.training.metrics_log import MetricsLog, read_values


def events(file) -> list[Event]:
  """TFRecords: length, its checksum, the event, its checksum."""
  content, found = file.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    found.append(Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def test_numbers_are_in_both_logs_as_soon_as_they_are_written(tmp_path):
  log = MetricsLog(tmp_path, 4)
  log.write(5, {"loss": 0.5, "valid/score": 0.25})
  log.write(6, {"loss": 0.75})
  (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  version, start, *rest = events(file)
  assert version.file_version == "brain.Event:2"
  assert (start.step, start.session_log.status) == (4, SessionLog.START)
  logged = [(e.step, v.tag, v.simple_value) for e in rest for v in e.summary.value]
  assert logged == [(5, "loss", 0.5), (5, "valid/score", 0.25), (6, "loss", 0.75)]
  assert all(e.wall_time == pytest.approx(version.wall_time, abs=60) for e in rest)
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as cut_short:
    cut_short.write('{"step": 6, "lo')
  assert read_values(tmp_path, "loss") == [0.5, 0.75]
  assert read_values(tmp_path, "valid/score") == [0.25]
  assert read_values(tmp_path / "elsewhere", "loss") == []
  MetricsLog(tmp_path, 5).close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [{"step": 5, "loss": 0.5, "valid/score": 0.25}]


def test_a_damaged_log_loses_its_damaged_lines_only(tmp_path):
  lines = [b'{"step": 1, "x": 0.5}', b'{"step": 2, "x": 0.\xff}', b"\xfe", b'{"step": 3, "x": "a"}']
  lines += [b'{"step": 4, "x": NaN}', b'{"step": 5, "x": 2}', b'{"step": 6, "x\xff": 3}']
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
  assert read_values(tmp_path, "x") == [0.5, 2]
  MetricsLog(tmp_path, 5).close()
  assert read_values(tmp_path, "x") == [0.5, 2]
