"""Images of items for the page, from a local folder."""

import pathlib

from mmesid_jax.data.folder.file_names import ITEMS
from mmesid_jax.data.folder.items import read_item_objects
from mmesid_jax.errors import UserError
from mmesid_jax.features.image_files import image_suffix, item_image_files
from mmesid_jax.files.readers import open_to_read
from mmesid_jax.serving.recommender import Recommender

MAX_BYTES = 2**24  # of an image that is sent
TYPES = {  # of the formats that browsers show
  ".jpg": "image/jpeg",
  ".png": "image/png",
  ".gif": "image/gif",
  ".webp": "image/webp",
  ".bmp": "image/bmp",
  ".avif": "image/avif",
}


class Images:
  """The image files of a catalogue, found as `item_image_files` finds them: by the items' keys, or
  by their ids where they have no keys. folder: None = no images.

  Raises UserError as `item_image_files` does.
  """

  def __init__(self, folder: pathlib.Path | None, recommender: Recommender):
    self._files: dict[int, pathlib.Path] = {}  # by item, of those that have one
    if folder is None:
      return
    items = read_item_objects(recommender.workdir.data_dir / ITEMS)
    names = (recommender.item_keys or [])[1:] or [str(item) for item in range(1, len(items) + 1)]
    files = enumerate(item_image_files(folder, names, items), start=1)
    self._files = {item: file for item, file in files if file is not None}

  def __len__(self) -> int:
    return len(self._files)

  def read(self, item: int) -> tuple[bytes, str] | None:
    """An item's image and its media type; None where no image can be shown."""
    if (file := self._files.get(item)) is None:
      return None
    try:
      with open_to_read(file) as opened:
        content = opened.read(MAX_BYTES + 1)
    except (OSError, UserError):  # it was moved, or is a pipe
      return None
    kind = TYPES.get(image_suffix(content[:16]) or "")  # by its bytes, whatever its name says
    return (content, kind) if kind and len(content) <= MAX_BYTES else None
