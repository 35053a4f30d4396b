"""The command `fetch_images`: downloads the first image of every item into a folder."""

import asyncio
import contextlib
import itertools
import json
import pathlib
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from mmesid_jax.data.folder.file_names import ITEMS
from mmesid_jax.data.folder.items import read_item_objects
from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.display import reporter
from mmesid_jax.errors import Interrupted, UserError, report_disk_errors
from mmesid_jax.features.download import Downloader, DownloadFailed
from mmesid_jax.features.image_files import (
  FAILED,
  MANIFEST,
  OK,
  file_stem,
  first_image,
  image_suffix,
  is_url,
  read_image_manifest,
)
from mmesid_jax.files.append import append_bytes, open_to_append
from mmesid_jax.files.atomic import open_atomic

DOWNLOADS = 16  # at once: the number of slow servers that do not hold up the others
GIVE_UP = 20  # images without an answer, when no image was ever fetched
MAX_NAMED = 3  # failed images that the summary names


class WantedImage(NamedTuple):
  """An item's key and the url of its image."""

  key: str
  url: str


def fetch_images(
  data: pathlib.Path,
  output: pathlib.Path,
  *,
  key: str,
  per_second: float,
  retries: int,
  timeout: float,
  max_megabytes: float,
  allow_private: bool,
) -> None:
  """Downloads the images that the manifest does not list, and adds a line to it for each of them.

  Args:
    data: the folder with items.jsonl.
    output: the folder for the images and manifest.jsonl.
    key: the field of items.jsonl that names the images.
    per_second, retries, timeout, allow_private: as in Downloader.
    max_megabytes: the largest image that is accepted.

  Raises UserError, also when no server answers or no image is there at the end, and Interrupted.
  """
  items_by_key = zip(item_keys(data, key), read_item_objects(data / ITEMS), strict=True)
  images = {item_key: first_image(item) for item_key, item in items_by_key}
  wanted = [WantedImage(k, url) for k, url in images.items() if url is not None and is_url(url)]
  with report_disk_errors(output):
    output.mkdir(parents=True, exist_ok=True)
  entries = read_image_manifest(output)
  todo = [w for w in wanted if not _is_fetched(entries.get(w.key), w, output)]
  give_up = None if any(entry["status"] == OK for entry in entries.values()) else GIVE_UP
  download = Downloader(
    per_second=per_second,
    retries=retries,
    timeout=timeout,
    max_bytes=int(max_megabytes * 1e6),
    allow_private=allow_private,
  )
  with report_disk_errors(output), open_to_append(output / MANIFEST) as manifest:
    _drop_partial_line(manifest)
    reasons = asyncio.run(_fetch_missing(todo, output, manifest, download, give_up))
  named = "; ".join(f"{k}: {reason}" for k, reason in itertools.islice(reasons.items(), MAX_NAMED))
  if reasons and len(reasons) == len(wanted):
    raise UserError(f"{output}: none of {len(wanted):,} images could be fetched ({named})")
  failed = f"; {len(reasons):,} failed ({named}), the same command tries them again"
  without = len(images) - len(wanted)
  reporter.info(
    f"{output}: images of {len(wanted) - len(reasons):,} of {len(images):,} items, "
    f"{len(todo) - len(reasons):,} of them new; {without:,} items have no url"
    + (failed if reasons else "")
  )


def _is_fetched(entry: Mapping[str, Any] | None, wanted: WantedImage, output: pathlib.Path) -> bool:
  return (
    entry is not None
    and (entry["status"], entry.get("url")) == (OK, wanted.url)
    and (output / entry["file"]).is_file()
  )


async def _fetch_missing(
  todo: list[WantedImage],
  output: pathlib.Path,
  manifest: BinaryIO,
  download: Downloader,
  give_up: int | None,
) -> dict[str, str]:
  """Downloads the images; returns the reason of every failure by key.

  Raises UserError when no server answers for any of the first `give_up` images, and Interrupted at
  SIGINT and SIGTERM.
  """
  reasons: dict[str, str] = {}
  count = unreached = 0
  received = _cancel_at_signal()
  results = _iter_results(todo, download)
  try:
    with reporter.progress(label="fetch", total=len(todo), unit="images") as bar:
      async with contextlib.aclosing(results):
        async for wanted, result in results:
          count += 1
          if isinstance(result, DownloadFailed):
            reasons[wanted.key] = str(result)
            unreached += not result.reached
          line = json.dumps(_save_image(output, wanted, result)).encode() + b"\n"
          append_bytes(manifest, line)
          bar.update()
          if unreached == count == give_up:
            raise UserError(f"{wanted.url}: {result}; no server answers for any of {count} images")
  except asyncio.CancelledError:
    raise Interrupted(
      f"{received[0].name}; {output} keeps the images so far; run the same command again"
    ) from None
  return reasons


def _save_image(
  output: pathlib.Path, wanted: WantedImage, result: bytes | DownloadFailed
) -> dict[str, Any]:
  """Writes the image's file, if there is one; returns the entry of the manifest."""
  entry: dict[str, Any] = {"key": wanted.key, "url": wanted.url}
  if isinstance(result, DownloadFailed):
    return entry | {"file": None, "status": FAILED, "reason": str(result)}
  name = file_stem(wanted.key) + image_suffix(result[:16])
  with open_atomic(output / name) as file:
    file.write(result)
  return entry | {"file": name, "status": OK}


def _cancel_at_signal() -> list[signal.Signals]:
  """Cancels the present task at the first SIGINT or SIGTERM; a second one acts as usual.

  Returns a list to which that signal is appended.
  """
  loop, task = asyncio.get_running_loop(), asyncio.current_task()
  received: list[signal.Signals] = []

  def receive(number: signal.Signals) -> None:
    received.append(number)
    task.cancel()
    for caught in (signal.SIGINT, signal.SIGTERM):
      loop.remove_signal_handler(caught)

  for caught in (signal.SIGINT, signal.SIGTERM):
    loop.add_signal_handler(caught, receive, caught)
  return received


async def _iter_results(
  todo: list[WantedImage], download: Downloader
) -> AsyncIterator[tuple[WantedImage, bytes | DownloadFailed]]:
  """Yields results as they arrive; at most DOWNLOADS are in progress, to bound memory."""
  waiting, running = iter(todo), {}
  async with download:
    try:
      while True:
        for wanted in itertools.islice(waiting, DOWNLOADS - len(running)):
          running[asyncio.create_task(download(wanted.url))] = wanted
        if not running:
          return
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
          try:
            result = task.result()
          except DownloadFailed as failure:
            result = failure
          yield running.pop(task), result
    finally:
      for task in running:
        task.cancel()
      await asyncio.gather(*running, return_exceptions=True)


def _drop_partial_line(manifest: BinaryIO) -> None:
  """Removes a last line that a killed run did not finish."""
  manifest.seek(0)
  whole = manifest.read().rfind(b"\n") + 1
  manifest.truncate(whole)
