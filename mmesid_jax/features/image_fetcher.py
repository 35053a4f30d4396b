"""The command `fetch_images`: downloads the first image of every item into a folder."""

import concurrent.futures
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
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
from mmesid_jax.files.append import open_to_append
from mmesid_jax.files.atomic import open_atomic

THREADS = 16  # the number of slow servers that do not hold up the others
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
) -> None:
  """Downloads the images that the manifest does not list, and adds a line to it for each of them.

  Args:
    data: the folder with items.jsonl.
    output: the folder for the images and manifest.jsonl.
    key: the field of items.jsonl that names the images.
    per_second, retries, timeout: as in Downloader.
    max_megabytes: the largest image that is accepted.

  Raises UserError, also when no server answers.
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
    per_second=per_second, retries=retries, timeout=timeout, max_bytes=int(max_megabytes * 1e6)
  )
  with report_disk_errors(output), open_to_append(output / MANIFEST) as manifest:
    _drop_partial_line(manifest)
    reasons = _fetch_missing(todo, output, manifest, download, give_up)
  named = "; ".join(f"{k}: {reason}" for k, reason in itertools.islice(reasons.items(), MAX_NAMED))
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


def _fetch_missing(
  todo: list[WantedImage],
  output: pathlib.Path,
  manifest: BinaryIO,
  download: Downloader,
  give_up: int | None,
) -> dict[str, str]:
  """Downloads the images; returns the reason of every failure by key.

  Raises UserError when no server answers for any of the first `give_up` images.
  """
  reasons: dict[str, str] = {}
  unreached = 0
  pool = concurrent.futures.ThreadPoolExecutor(THREADS)
  try:
    with reporter.progress(label="fetch", total=len(todo), unit="images") as bar:
      for count, (wanted, result) in enumerate(_iter_results(pool, todo, download), start=1):
        entry: dict[str, Any] = {"key": wanted.key, "url": wanted.url}
        if isinstance(result, DownloadFailed):
          reasons[wanted.key] = str(result)
          entry |= {"file": None, "status": FAILED, "reason": str(result)}
          unreached += not result.reached
        else:
          name = file_stem(wanted.key) + image_suffix(result[:16])
          with open_atomic(output / name) as file:
            file.write(result)
          entry |= {"file": name, "status": OK}
        manifest.write(json.dumps(entry).encode() + b"\n")
        manifest.flush()
        bar.update()
        if unreached == count == give_up:
          raise UserError(f"{wanted.url}: {result}; no server answers for any of {count} images")
  except KeyboardInterrupt:
    raise Interrupted(
      f"SIGINT; {output} keeps the images so far; run the same command again"
    ) from None
  finally:
    download.stop()
    pool.shutdown(cancel_futures=True)
  return reasons


def _iter_results(
  pool: concurrent.futures.Executor, todo: list[WantedImage], download: Downloader
) -> Iterator[tuple[WantedImage, bytes | DownloadFailed]]:
  """Yields results as they arrive; at most THREADS downloads are in progress, to bound memory."""
  waiting, running = iter(todo), {}
  while True:
    for wanted in itertools.islice(waiting, THREADS - len(running)):
      running[pool.submit(download, wanted.url)] = wanted
    if not running:
      return
    done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in done:
      try:
        result = future.result()
      except DownloadFailed as failure:
        result = failure
      yield running.pop(future), result


def _drop_partial_line(manifest: BinaryIO) -> None:
  """Removes a last line that a killed run did not finish."""
  manifest.seek(0)
  whole = manifest.read().rfind(b"\n") + 1
  manifest.truncate(whole)
