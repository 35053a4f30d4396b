"""Writes a prepared folder as a TensorFlow dataset, without TensorFlow.

Importing this module takes seconds, because it imports TFDS: import it only to write a dataset.
"""

import contextlib
import errno
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from mmesid_jax.data.folder import tfds_shards
from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.tfds_examples import ITEMS_CONFIG, LISTS, NAME, TEXTS, USERS_CONFIG
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder

FOLDER = "tfds"  # in the prepared folder; the data_dir of TFDS


class _DeterministicWriter(writer.ExampleWriter):
  """Writes the features of an example ordered by name, so that the same data is the same bytes.

  The order of protobuf differs between processes.
  """

  def write(self, path, examples):
    ordered = (
      (key, tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True))
      for key, example in examples
    )
    return super().write(path, ordered)


class Interactions(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Builder of `interactions/users` and `interactions/items`, one example per user or item.

  Examples are in the order of the files. They are written shard by shard, in this process or by
  Beam; the GeneratorBasedBuilder of TFDS would collect a split first, and needs TensorFlow for more
  than a gigabyte.
  """

  name = NAME
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Users with keys, items and times; items with keys and descriptions."}
  url_infos = None  # nothing is downloaded, and a search for checksums needs more packages
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(
      name=USERS_CONFIG, description="The items of every user, oldest first."
    ),
    tfds.core.BuilderConfig(name=ITEMS_CONFIG, description="Description of every item."),
  ]

  def __init__(
    self, *, shards: tfds_shards.Shards, on_example: Callable[[], object] | None, **options
  ):
    """on_example: called for every example; None when other processes write."""
    self._shards, self._on_example = shards, on_example
    super().__init__(**options, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    if self.builder_config.name == USERS_CONFIG:
      features = {"user_id": np.int64, KEY: text, "items": tfds.features.Sequence(np.int32)}
      if tfds_shards.open_folder_times(self._shards.shards[0].folder) is not None:
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
    shards = self._shards.shards
    if self._on_example is not None:
      shards = [functools.partial(_count_examples, shard, self._on_example) for shard in shards]
    return {self.builder_config.name: shards}

  def _example_writer(self) -> writer.ExampleWriter:
    return _DeterministicWriter(self.info.file_format)


def _count_examples(
  shard: Callable[[], Iterator[tfds_shards.KeyedExample]], on_example: Callable[[], object]
) -> Iterator[tfds_shards.KeyedExample]:
  for example in shard():
    on_example()
    yield example


def write_tfds_dataset(folder: Path, beam: str | None = None) -> Path:
  """Writes folder/tfds from the plain files of `folder`, and returns its path.

  It appears complete or not at all, and the same files give the same bytes.

  Args:
    beam: flags of Apache Beam, as "--runner=DirectRunner --direct_num_workers=4"; its workers then
      write the dataset and must be able to read `folder`. None = this process writes it.

  Raises UserError for a folder/tfds that exists, for files that `prepare` would not have written,
  and when the disk refuses it.
  """
  output = folder / FOLDER
  if output.exists():
    raise UserError(f"{output}: exists; delete it to have it written again")
  config = None if beam is None else _beam_config(beam)
  configurations = tfds_shards.cut_into_shards(folder)
  total = sum(shards.examples for shards in configurations.values())
  with atomic_folder(output) as temporary:
    with reporter.progress(label=FOLDER, total=total, unit=" examples") as bar:
      on_example = bar.update if beam is None else None  # Beam writes in other processes
      for name, shards in configurations.items():
        builder = Interactions(
          shards=shards, on_example=on_example, data_dir=temporary, config=name
        )
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a wrong size
          with _full_disk_by_number():
            builder.download_and_prepare(download_config=config)
        for left_over in Path(builder.data_dir).glob("*.shard_infos.json"):
          left_over.unlink()  # messages of Beam's workers to the process that started them
    shutil.rmtree(temporary / "downloads")  # TFDS makes this empty folder
  return output


@contextlib.contextmanager
def _full_disk_by_number() -> Iterator[None]:
  """Gives an error of TFDS about a full disk, which has words only, the system's number."""
  try:
    yield
  except OSError as error:
    if error.errno is None and "Not enough disk space" in str(error):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    raise


def _beam_config(text: str) -> tfds.download.DownloadConfig:
  """Parses the flags of Beam. Raises UserError when it is not installed, or for no runner."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
  except ImportError as error:
    raise UserError(f"--beam: {error}; pip install apache-beam") from None
  options = PipelineOptions(text.split())
  runner = options.view_as(StandardOptions).runner
  if not runner:
    raise UserError(f"--beam={text!r}: names no runner; --runner=DirectRunner is one")
  return tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
