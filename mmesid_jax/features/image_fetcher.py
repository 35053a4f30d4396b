"""What the command `fetch` does: downloads the items' first images into a folder."""

import concurrent.futures
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from mmesid_jax.data.folder.items import read_objects
from mmesid_jax.data.folder.keys import item_keys
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
from mmesid_jax.files.atomic import ITEMS, write_whole

THREADS = 16  # as many servers may be slow at once
GIVE_UP = 20  # images, when no server answers for any of them and none was fetched before
MAX_NAMED = 3  # images that could not be had and are named


class WantedImage(NamedTuple):
  key: str
  url: str


def fetch_images(
  data: pathlib.Path, output: pathlib.Path, *, key: str, download: Downloader
) -> None:
  """Fetches what the manifest does not say is there, and adds a line to it for each image. Raises
  UserError, among others where no server answers."""
  keyed = zip(item_keys(data, key), read_objects(data / ITEMS), strict=True)
  images = {k: first_image(item) for k, item in keyed}
  wanted = [WantedImage(k, url) for k, url in images.items() if url is not None and is_url(url)]
  with report_disk_errors(output):
    output.mkdir(parents=True, exist_ok=True)
  entries = read_image_manifest(output)
  todo = [w for w in wanted if not _is_fetched(entries.get(w.key), w, output)]
  give_up = None if any(x["status"] == OK for x in entries.values()) else GIVE_UP
  with report_disk_errors(output), (output / MANIFEST).open("a+b") as manifest:
    _drop_partial_line(manifest)
    reasons = _fetch_missing(todo, output, manifest, download, give_up)
  named = "; ".join(f"{k}: {reason}" for k, reason in itertools.islice(reasons.items(), MAX_NAMED))
  failed = f"; {len(reasons):,} failed ({named}), the same command tries them again"
  without = len(images) - len(wanted)
  print(
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
  """Why images could not be had, by key. Raises UserError when no server answers for any of the
  first `give_up`."""
  reasons: dict[str, str] = {}
  unreached = 0
  pool = concurrent.futures.ThreadPoolExecutor(THREADS)
  try:
    with tqdm(total=len(todo), desc="fetch", unit="images", delay=3, leave=False) as bar:
      for wanted, result in _iter_results(pool, todo, download):
        entry: dict[str, Any] = {"key": wanted.key, "url": wanted.url}
        if isinstance(result, DownloadFailed):
          reasons[wanted.key] = str(result)
          entry |= {"file": None, "status": FAILED, "reason": str(result)}
          unreached += not result.reached
        else:
          name = file_stem(wanted.key) + image_suffix(result[:16])
          write_whole(output / name, lambda file, body=result: file.write(body))
          entry |= {"file": name, "status": OK}
        manifest.write(json.dumps(entry).encode() + b"\n")
        manifest.flush()
        bar.update()
        if unreached == bar.n == give_up:
          raise UserError(f"{wanted.url}: {result}; no server answers for any of {bar.n} images")
  except KeyboardInterrupt:
    raise Interrupted(f"SIGINT; {output} keeps what came; run the same command again") from None
  finally:
    download.stop()
    pool.shutdown(cancel_futures=True)
  return reasons


def _iter_results(
  pool: concurrent.futures.Executor, todo: list[WantedImage], download: Downloader
) -> Iterator[tuple[WantedImage, bytes | DownloadFailed]]:
  """As they come; no more are under way than there are threads, so that memory stays small."""
  waiting, coming = iter(todo), {}
  while True:
    for wanted in itertools.islice(waiting, THREADS - len(coming)):
      coming[pool.submit(download, wanted.url)] = wanted
    if not coming:
      return
    done, _ = concurrent.futures.wait(coming, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in done:
      try:
        result = future.result()
      except DownloadFailed as failed:
        result = failed
      yield coming.pop(future), result


def _drop_partial_line(manifest: BinaryIO) -> None:
  """What a kill left behind the last whole line."""
  manifest.seek(0)
  whole = manifest.read().rfind(b"\n") + 1
  manifest.truncate(whole)
