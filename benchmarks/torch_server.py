"""A straightforward server of the same weights in FastAPI and PyTorch; serving.py measures it:

  python benchmarks/torch_server.py --workdir=runs/beauty --model=blend --threads=1

One process, a request at a time for each of its workers, no batches: as many workers as the cores
give `threads` each. The thread of the event loop does HTTP and JSON, the workers do the model.
"""

import asyncio
import concurrent.futures
import os
import pathlib
import socket

import pydantic
import torch
import torch_blend
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

TOLERANCE = 1e-3  # of scores; sums in float32 have another order here


class Request(pydantic.BaseModel):
  """The part of our service's request that is answered."""

  histories: list[list[int]]
  top_k: int = 10


def create_app(path: pathlib.Path, model: str, threads: int) -> FastAPI:
  """The server of the workdir `path`; threads: of PyTorch in one operation."""
  torch.set_num_threads(threads)
  served = torch_blend.load(path, model)
  workers = concurrent.futures.ThreadPoolExecutor(
    max((os.cpu_count() or 1) // threads, 1), initializer=torch.set_num_threads, initargs=(threads,)
  )
  app = FastAPI()

  def answer(request: Request) -> list[dict]:
    best = [torch_blend.top_items(served, h, request.top_k) for h in request.histories]
    return [{"items": [{"item": item, "score": s} for item, s in pairs]} for pairs in best]

  @app.post("/recommend")
  async def recommend(request: Request) -> JSONResponse:
    loop = asyncio.get_running_loop()
    return JSONResponse({"answers": await loop.run_in_executor(workers, answer, request)})

  return app


def find_difference(ours: list[dict], theirs: list[dict]) -> str | None:
  """The first way in which two answers to one history differ, other than by ties.

  Items that both name have equal scores within TOLERANCE, and one that only one names has that of
  the other's last.
  """
  if len(ours) != len(theirs):
    return f"{len(ours)} and {len(theirs)} items"
  for items, others in ((ours, theirs), (theirs, ours)):
    scores = {other["item"]: other["score"] for other in others}
    for item in items:
      expected = scores.get(item["item"], others[-1]["score"])
      if not abs(item["score"] - expected) <= TOLERANCE:
        return f"item {item['item']}: {item['score']:.4f} and {expected:.4f}"
  return None


def main(argv: list[str]) -> None:
  del argv
  app = create_app(pathlib.Path(WORKDIR.value), MODEL.value, THREADS.value)
  listener = socket.create_server(("127.0.0.1", PORT.value), backlog=1024)
  print(f"ready: http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
  config = uvicorn.Config(app, log_level="warning", access_log=False)
  uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
  from absl import app as command
  from absl import flags

  WORKDIR = flags.DEFINE_string("workdir", None, "A folder with a trained recommender.")
  MODEL = flags.DEFINE_enum("model", "blend", ["network", "blend"], "Which model answers.")
  THREADS = flags.DEFINE_integer("threads", 1, "Of PyTorch in one operation.", lower_bound=1)
  PORT = flags.DEFINE_integer("port", 0, "Port; 0 = any free one.", 0, 65535)
  flags.mark_flag_as_required("workdir")
  command.run(main)
