"""Speed of the HTTP service:

  python benchmarks/serving.py --workdir=runs/beauty --output=runs/serving
  python benchmarks/serving.py --workdir=runs/beauty --output=runs/serving --beside=torch --rounds=5

Starts `mmesid_jax.serve` on the workdir and asks it with 1, 8 and 64 clients at once, each one
request after the other on one connection, for histories of the data set's users. The clients are in
this process, on the same machine. A table, and OUTPUT/serving.json: requests a second (the median
of the rounds), milliseconds of a request (median, 99 %), and of the model's batches, the rest being
HTTP and waiting.

--beside=torch starts torch_server.py, too, which needs PyTorch: with one thread of it for each of
as many requests at once as there are cores, and with all cores for one request after the other.
First it checks that all servers give the same items; then they take turns.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError
from mmesid_jax.stages.workdir import reopen_workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A folder with a trained recommender.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Clients at once, in turn.")
SECONDS = flags.DEFINE_float("seconds", 8.0, "For each number of clients.", 0.1, 3600.0)
MODEL = flags.DEFINE_string("model", None, "As in `serve`.")
ROUNDS = flags.DEFINE_integer("rounds", 1, "For each number of clients.", lower_bound=1)
BESIDE = flags.DEFINE_enum("beside", None, ["torch"], "Another server to measure.")
flags.mark_flags_as_required(["workdir", "output"])

WARM_SECONDS = 1.0  # are not counted
COMPARED = 50  # histories whose answers must be equal
OURS = "ours"


def main(argv: list[str]) -> None:
  del argv
  path = pathlib.Path(WORKDIR.value)
  dataset = reopen_workdir(path).dataset
  users = np.linspace(0, len(dataset) - 1, 2000).astype(int)
  histories = [dataset.sequence(user).tolist() for user in users]
  figures: dict[str, Any] = {"environment": timing.environment(), "items": dataset.num_items}
  started = time.perf_counter()
  with contextlib.ExitStack() as servers:
    ports = {}
    for name, command in commands(path).items():
      ports[name] = servers.enter_context(running(command))
      figures.setdefault("start_seconds", time.perf_counter() - started)
    print(f"{dataset.num_items:,} items, ready after {figures['start_seconds']:.0f} s")
    if others := [name for name in ports if name != OURS]:
      compare_answers(ports, histories)
      print(f"{COMPARED} histories: the same items from all servers")
    width = max(map(len, ports))
    print(f"\n{'':{width}} clients   requests a second   p50, ms   p99, ms", end="")
    print("   histories a batch   ms a batch" + ("   ours is" if others else ""))
    figures |= {"load": {}, "beside": {name: {} for name in others}}
    for clients in map(int, CLIENTS.value):
      found = measure(ports, histories, clients)
      figures["load"][clients] = ours = found[OURS]
      for name, f in found.items():
        line = f"{name:{width}} {clients:7} {f['per_second']:19.0f} {f['p50']:9.2f} {f['p99']:9.2f}"
        if name == OURS:
          print(f"{line} {f['histories_per_batch']:19.1f} {f['batch']:12.2f}")
        else:
          figures["beside"][name][clients] = f
          print(f"{line} {'':32} {ours['per_second'] / f['per_second']:7.2f} x")
    timing.write(pathlib.Path(OUTPUT.value) / "serving.json", figures)


def commands(path: pathlib.Path) -> dict[str, list[str]]:
  """The command that starts each server, by its name."""
  command = [sys.executable, "-m", "mmesid_jax.serve", f"--workdir={path}", "--port=0"]
  found = {OURS: command + ([f"--model={MODEL.value}"] if MODEL.value else [])}
  if BESIDE.value:
    model = MODEL.value or ("blend" if (path / "blend.safetensors").exists() else "network")
    script = pathlib.Path(__file__).with_name("torch_server.py")
    for threads in sorted({1, os.cpu_count() or 1}):
      flags_ = [f"--workdir={path}", f"--model={model}", f"--threads={threads}"]
      found[f"torch, threads={threads}"] = [sys.executable, str(script), *flags_]
  return found


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
  """The port of the server that the command starts; it ends with the context."""
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    ports = (int(x[1]) for line in server.stdout if (x := re.search(r"ready: .*?:(\d+)/", line)))
    if (port := next(ports, None)) is None:
      raise UserError(f"{' '.join(command)}: ended before it was ready")
    yield port
  finally:
    server.terminate()
    server.wait(60)


def compare_answers(ports: Mapping[str, int], histories: list[list[int]]) -> None:
  """Raises UserError unless all servers give the same items, other than by ties."""
  from torch_server import find_difference

  def ask(port: int, history: list[int]) -> list[dict]:
    body = json.dumps({"histories": [history], "top_k": 10}).encode()
    url, kind = f"http://127.0.0.1:{port}/recommend", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, kind)) as answer:
      return json.load(answer)["answers"][0]["items"]

  for history in [[], *histories[:: max(len(histories) // COMPARED, 1)]][:COMPARED]:
    ours = ask(ports[OURS], history)
    for name, port in ports.items():
      if difference := find_difference(ours, ask(port, history)):
        raise UserError(f"{name}: not the items of the service, history {history}: {difference}")


def measure(
  ports: Mapping[str, int], histories: list[list[int]], clients: int
) -> dict[str, dict[str, Any]]:
  """The figures of every server, which take turns."""
  rounds: dict[str, list[list[float]]] = {name: [] for name in ports}
  before = batch_figures(ports[OURS])
  for _ in range(ROUNDS.value):
    for name, port in ports.items():
      rounds[name].append(asyncio.run(ask_at_once(port, histories, clients)))
  found = {}
  for name, seconds in rounds.items():
    rates, every = [len(s) / SECONDS.value for s in seconds], np.concatenate(seconds)
    found[name] = {
      "per_second": statistics.median(rates),
      "rates": rates,
      "p50": 1e3 * float(np.median(every)),
      "p99": 1e3 * float(np.quantile(every, 0.99)),
    }
  size, batches, busy = batch_figures(ports[OURS]) - before
  found[OURS] |= {"histories_per_batch": size / batches, "batch": 1e3 * busy / batches}
  return found


async def ask_at_once(port: int, histories: list[list[int]], clients: int) -> list[float]:
  """Seconds that the requests took which ended within SECONDS, after WARM_SECONDS."""
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
      if begin <= (now := time.perf_counter()) < end:
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
