import os
import pathlib
import shutil

import hypothesis
import jax
import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.config.schema import STAGES, TRAINED, default_config
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.models import evidence

ON_GPU = os.environ.get("JAX_PLATFORMS") == "cuda"  # as `make gpu` says

# Compiling is most of what tests do: three times as fast with XLA's older code generator, which jax
# has up to 0.10. It ends the process for a flag that it does not know.
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""

if not ON_GPU:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_disable_most_optimizations", True)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # in the commands that tests start, too
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()
jax.config.update("jax_num_cpu_devices", 8)  # meshes; what is not sharded runs on the first
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

FEW_NEWEST = 6  # past items that evidence looks at, under the fixture few_newest

TINY = {  # every trained stage in seconds
  "stages": TRAINED,
  "data.source": "synthetic",
  "data.synthetic.num_users": 60,
  "data.synthetic.num_items": 40,
  "data.synthetic.num_clusters": 4,
  "features.text": "text.npy",
  "collaborative.width": 8,
  "collaborative.layers": 1,
  "collaborative.rows": 4,
  "collaborative.row_length": 32,
  "collaborative.targets": 96,
  "collaborative.epochs": 2,
  "semantic_ids.hidden": (16,),
  "semantic_ids.quantizer.levels": 2,
  "semantic_ids.quantizer.codes": 4,
  "semantic_ids.batch": 16,
  "semantic_ids.epochs": 2,
  "semantic_ids.validate_every_epochs": 1,
  "recommender.width": 8,
  "recommender.layers": 1,
  "recommender.head_width": 4,
  "recommender.mlp_width": 16,
  "recommender.whiten": 8,
  "recommender.rows": 4,
  "recommender.row_length": 32,
  "recommender.targets": 96,
  "recommender.epochs": 2,
  "evaluation.targets": 32,
  "evaluation.resamples": 20,
  "mesh.fsdp": 1,  # one of the eight
}


@pytest.fixture
def few_newest(monkeypatch):
  monkeypatch.setattr(evidence, "NEWEST", FEW_NEWEST)
  jax.clear_caches()  # NEWEST is read when a program is traced
  yield
  jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
  """Programs that several tests compile are compiled by the first of them, in whichever process;
  where JAX_COMPILATION_CACHE_DIR names a folder, once for all runs."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # of all workers
  options = {
    "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir or str(folder / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  for name, value in options.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the commands that tests start


@pytest.fixture(scope="session")
def tiny():
  """tiny(preset, key=value, ...): a configuration of all stages that trains in seconds."""

  def make(preset="best", changes=()):
    config = default_config(preset)
    config.update_from_flattened_dict({**TINY, **dict(changes)})
    return config

  return make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> pathlib.Path:
  """A workdir with every stage trained once. Read only: copy it to change it."""
  path = tmp_path_factory.mktemp("runs") / "tiny"
  pipeline.run_pipeline(tiny(), path)
  return path


@pytest.fixture(scope="session")
def blended(tiny, trained, tmp_path_factory) -> pathlib.Path:
  """The trained workdir with counts, content and blend; the network has weights that are not 0."""
  path = pathlib.Path(shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "blended"))
  pipeline.run_pipeline(tiny(changes={"stages": STAGES}), path)
  tensors, header = read_artifact(path / "blend.safetensors", "blend")
  tensors["weights"] = np.float32([0.1, 0.7])
  write_artifact(path / "blend.safetensors", tensors, header)
  return path


@pytest.fixture
def workdir(trained, tmp_path) -> pathlib.Path:
  """A copy of the trained workdir, to be changed."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / "copy"))
