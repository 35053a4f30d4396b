"""Speed of the HTTP service:

  python benchmarks/serving.py --workdir=runs/beauty --output=runs/serving

Starts `mmesid_jax.serve` on the workdir and asks it with 1, 8 and 64 clients at once, each one
request after the other on one connection, for histories of the data set's users. The clients are in
this process, on the same machine. A table, and OUTPUT/serving.json: requests a second, milliseconds
of a request (median, 99 %), and of the model's batches, the rest being HTTP and waiting.
"""

import asyncio
import json
import pathlib
import re
import subprocess
import sys
import time
import urllib.request
from typing import Any

import numpy as np
import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.stages.workdir import reopen_workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A folder with a trained recommender.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Clients at once, in turn.")
SECONDS = flags.DEFINE_float("seconds", 8.0, "For each number of clients.", 0.1, 3600.0)
MODEL = flags.DEFINE_string("model", None, "As in `serve`.")
flags.mark_flags_as_required(["workdir", "output"])

WARM_SECONDS = 1.0  # are not counted


def main(argv: list[str]) -> None:
  del argv
  dataset = reopen_workdir(pathlib.Path(WORKDIR.value)).dataset
  users = np.linspace(0, len(dataset) - 1, 2000).astype(int)
  histories = [dataset.sequence(user).tolist() for user in users]
  command = [sys.executable, "-m", "mmesid_jax.serve", f"--workdir={WORKDIR.value}", "--port=0"]
  if MODEL.value:
    command.append(f"--model={MODEL.value}")
  started = time.perf_counter()
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    port = next(int(x[1]) for line in server.stdout if (x := re.search(r"ready: .*?:(\d+)/", line)))
    figures: dict[str, Any] = {"environment": timing.environment(), "items": dataset.num_items}
    figures["start_seconds"] = time.perf_counter() - started
    print(f"{dataset.num_items:,} items, ready after {figures['start_seconds']:.0f} s\n")
    print("clients   requests a second   p50, ms   p99, ms   histories a batch   ms a batch")
    figures["load"] = {}
    for clients in map(int, CLIENTS.value):
      before = batch_figures(port)
      seconds = asyncio.run(ask_at_once(port, histories, clients))
      size, batches, busy = batch_figures(port) - before
      found = {
        "per_second": len(seconds) / SECONDS.value,
        "p50": 1e3 * float(np.median(seconds)),
        "p99": 1e3 * float(np.quantile(seconds, 0.99)),
        "histories_per_batch": size / batches,
        "batch": 1e3 * busy / batches,
      }
      figures["load"][clients] = found
      print(
        f"{clients:7} {found['per_second']:19.0f} {found['p50']:9.2f} {found['p99']:9.2f}"
        f" {found['histories_per_batch']:19.1f} {found['batch']:12.2f}"
      )
    timing.write(pathlib.Path(OUTPUT.value) / "serving.json", figures)
  finally:
    server.terminate()
    server.wait(60)


async def ask_at_once(port: int, histories: list[list[int]], clients: int) -> list[float]:
  """Seconds of the requests that ended within SECONDS, after WARM_SECONDS."""
  seconds: list[float] = []
  begin = time.perf_counter() + WARM_SECONDS
  end = begin + SECONDS.value

  async def ask(first: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    place = first
    while (sent := time.perf_counter()) < end:
      body = json.dumps({"histories": [histories[place % len(histories)]], "top_k": 10}).encode()
      head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
      writer.write(f"POST /recommend HTTP/1.1\r\nHost: localhost\r\n{head}".encode() + body)
      answer = await reader.readuntil(b"\r\n\r\n")
      await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
      if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
      if begin <= sent and (now := time.perf_counter()) < end:
        seconds.append(now - sent)
      place += clients
    writer.close()

  await asyncio.gather(*map(ask, range(clients)))
  return seconds


def batch_figures(port: int) -> np.ndarray:
  """Histories, batches and seconds of the model so far."""
  text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
  names = ("size_sum", "size_count", "seconds_sum")
  return np.array([float(re.search(rf"mmesid_batch_{n} (\S+)", text)[1]) for n in names])


if __name__ == "__main__":
  command_line.run_command(main)
