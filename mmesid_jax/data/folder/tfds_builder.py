"""A prepared folder as a TensorFlow dataset, written without TensorFlow.

Importing this module imports TFDS, which takes seconds: only what writes such datasets does.
"""

import contextlib
import functools
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from mmesid_jax.data.folder import tfds_shards
from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.tfds_examples import ITEMS, LISTS, NAME, TEXTS, USERS
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import whole_folder

FOLDER = "tfds"  # within the prepared folder; TFDS's data_dir


class _InOneOrder(writer.ExampleWriter):
  """Writes an example's features by name: protobuf's own order is another in every process, and
  the same data should be the same bytes."""

  def write(self, path, examples):
    ordered = (
      (key, tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True))
      for key, example in examples
    )
    return super().write(path, ordered)


class Interactions(tfds.core.ShardBasedBuilder, skip_registration=True):
  """`interactions/users`, an example a user, and `interactions/items`, an example an item, in the
  order of the files.

  Shard by shard, in this process or by Beam. TFDS's GeneratorBasedBuilder gathers a split before it
  writes it, and needs TensorFlow once that is more than a gigabyte.
  """

  name = NAME
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Users with keys, items and times; items with keys and descriptions."}
  url_infos = None  # nothing is downloaded, and looking for checksums takes more packages
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=USERS, description="What every user met, oldest item first."),
    tfds.core.BuilderConfig(name=ITEMS, description="What is known of every item."),
  ]

  def __init__(self, *, cut: tfds_shards.Shards, bar: tqdm.tqdm | None, **options):
    """cut: what is written; bar: moved by every example, None where other processes write."""
    self._cut, self._bar = cut, bar
    super().__init__(**options, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    if self.builder_config.name == USERS:
      features = {"user_id": np.int64, KEY: text, "items": tfds.features.Sequence(np.int32)}
      if tfds_shards.read_times(self._cut.shards[0].folder) is not None:
        features["times"] = tfds.features.Sequence(np.int64)
    else:
      features = {
        **{"item_id": np.int64, KEY: text},
        **{name: text for name in TEXTS},
        **{name: texts for name in LISTS},
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Item ids count from 1. Texts are UTF-8, "" where nothing is known.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager
    found = self._cut.shards
    if self._bar is not None:
      found = [functools.partial(_counted, shard, self._bar) for shard in found]
    return {self.builder_config.name: found}

  def _example_writer(self) -> writer.ExampleWriter:
    return _InOneOrder(self.info.file_format)


def _counted(shard: Iterable, bar: tqdm.tqdm) -> Iterator[tfds_shards.Keyed]:
  for example in shard():
    bar.update()
    yield example


def write_tfds_dataset(folder: Path, beam: str | None = None) -> Path:
  """Writes folder/tfds from the plain files of `folder`, and returns it; it appears complete or not
  at all, and the same files give the same bytes.

  beam: flags of Apache Beam, as "--runner=DirectRunner --direct_num_workers=4": its workers then
  write, who need to see `folder` too. Raises UserError for a folder/tfds that exists, files that
  are not as `prepare` writes them, and where the disk refuses it.
  """
  output = folder / FOLDER
  if output.exists():
    raise UserError(f"{output}: exists; delete it to have it written again")
  config = None if beam is None else _beam(beam)
  cuts = tfds_shards.cut_into_shards(folder)
  total = sum(cut.examples for cut in cuts.values())
  with whole_folder(output) as temporary:
    with tqdm.tqdm(total=total, desc=FOLDER, unit=" examples", delay=2, leave=False) as bar:
      for name, cut in cuts.items():
        own = bar if beam is None else None
        built = Interactions(cut=cut, bar=own, data_dir=temporary, config=name)
        with contextlib.redirect_stdout(io.StringIO()):  # it tells a size that it does not know
          built.download_and_prepare(download_config=config)
        for left in Path(built.data_dir).glob("*.shard_infos.json"):
          left.unlink()  # by Beam's workers, for who started them
    shutil.rmtree(temporary / "downloads")  # TFDS makes it, for nothing
  return output


def _beam(text: str) -> tfds.download.DownloadConfig:
  """How Beam is to run. Raises UserError where it is not installed or the flags name no runner."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
  except ImportError as error:
    raise UserError(f"--beam: {error}; pip install apache-beam") from None
  options = PipelineOptions(text.split())
  runner = options.view_as(StandardOptions).runner
  if not runner:
    raise UserError(f"--beam={text!r}: names no runner; --runner=DirectRunner is one")
  return tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
