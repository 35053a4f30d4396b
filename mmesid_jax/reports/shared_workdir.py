"""Workdirs for others: copied with a model card, as a folder, one file, or on a model hub."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator

from ml_collections import ConfigDict

from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import BASELINES, STAGES, flatten
from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, read_header, write_artifact
from mmesid_jax.files.atomic import (
  atomic_file,
  atomic_folder,
  check_new_directory,
  check_new_file,
)
from mmesid_jax.files.readers import open_to_read, parse_json, read_json_object
from mmesid_jax.hf.safetensors_dir import check_link
from mmesid_jax.reports.model_card import model_card
from mmesid_jax.stages.workdir import CHOSEN, REFRESHED, reopen_workdir

ARTIFACTS = {f"{name}.safetensors": name for name in (*STAGES, *BASELINES, REFRESHED)}
CONFIG, EVALUATION, CARD, DATA = "config.json", "evaluation.json", "README.md", "data"
EVALUATIONS = (EVALUATION, "evaluation_valid.json")
REPORTS = (*EVALUATIONS, "environment.json", CHOSEN)
DATA_FILES = tuple(f"{DATA}/{name}" for name in (SEQUENCES, ITEMS, USERS, TIMES))
NAMES = (CONFIG, CARD, *ARTIFACTS, *REPORTS, *DATA_FILES)  # nothing else is copied
ZIP = ".zip"  # of any case


def write_shared(
  workdir: pathlib.Path,
  output: pathlib.Path,
  *,
  with_data: bool,
  data_dir: str | None = None,
  overwrite: bool = False,
) -> None:
  """Copies a trained workdir, with a model card, to a new folder or a file that ends in .zip.

  The copy holds the configuration without the paths of this machine, all artifacts and figures,
  and with `with_data` the data set: histories of users, names of items. Feature tables and
  checkpoints are left out. The same workdir gives the same bytes. Raises UserError.
  """
  if output.suffix.lower() == ZIP:
    check_new_file(output, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as temporary, atomic_file(output) as file:
      folder = pathlib.Path(temporary)
      _fill(workdir, folder, with_data=with_data, data_dir=data_dir)
      _zip(folder, file)
  else:
    if overwrite:
      raise UserError("--overwrite: belongs to a .zip file; no folder is replaced")
    check_new_directory(output)
    with atomic_folder(output) as folder:
      _fill(workdir, folder, with_data=with_data, data_dir=data_dir)
  _say(output, with_data=with_data)


def upload(
  workdir: pathlib.Path,
  repo: str,
  *,
  with_data: bool,
  public: bool,
  data_dir: str | None = None,
) -> None:
  """Uploads such a copy to the Hugging Face hub, where the token of `hf auth login` allows it. A
  repository that does not exist is made, a private one unless `public`; a public one is refused
  without `public`. Raises UserError."""
  import huggingface_hub

  with tempfile.TemporaryDirectory() as temporary:
    _fill(workdir, pathlib.Path(temporary), with_data=with_data, data_dir=data_dir)
    with _hub_errors(repo):
      hub = huggingface_hub.HfApi()
      hub.create_repo(repo, private=not public, exist_ok=True)
      if not (public or hub.repo_info(repo).private):
        raise UserError(f"--repo={repo}: everybody can see it; pass --public, or name another")
      hub.upload_folder(
        repo_id=repo,
        folder_path=temporary,
        commit_message="A trained model",
        delete_patterns=list(NAMES),  # of an earlier upload
      )
  _say(f"https://huggingface.co/{repo}", with_data=with_data)


def download(
  repo: str, workdir: pathlib.Path, *, revision: str | None = None, checkpoint: str | None = None
) -> None:
  """`read_shared` of a repository on the Hugging Face hub; revision: a branch, tag or commit."""
  import huggingface_hub

  check_new_directory(workdir)
  with _hub_errors(repo):
    folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(NAMES))
  read_shared(pathlib.Path(folder), workdir, checkpoint=checkpoint)


def read_shared(
  source: pathlib.Path, workdir: pathlib.Path, *, checkpoint: str | None = None
) -> None:
  """Makes a workdir of a copy that `write_shared` wrote, a folder or a .zip file.

  Files of other names are not copied. Nothing of the copy is run. checkpoint: the folder of the
  pretrained backbone, where the model has one. Raises UserError for a copy that lacks something,
  that holds what is not its own, and for a workdir that exists.
  """
  check_new_directory(workdir)
  with atomic_folder(workdir) as folder:
    if source.suffix.lower() == ZIP and not source.is_dir():
      _unzip(source, folder)
    else:
      _copy_known(source, folder)
    config = read_config(folder)
    for name in filter(lambda name: (folder / name).exists(), ARTIFACTS):
      read_header(folder / name, ARTIFACTS[name])
    if not (folder / "recommender.safetensors").exists():
      raise UserError(f"{source}: holds no recommender.safetensors; was it written by push?")
    has_data = (folder / DATA / SEQUENCES).exists()
    config = _without_places(config)
    config.data.dir = os.fspath((workdir / DATA).absolute())
    name = config.recommender.backbone.checkpoint
    if bool(name) != bool(checkpoint):
      needs = (
        f"needs the checkpoint {name!r}; name its folder" if name else "needs none; leave it out"
      )
      raise UserError(f"--checkpoint: {source} {needs}")
    if checkpoint and not os.path.isdir(checkpoint):
      raise UserError(f"--checkpoint={checkpoint}: no such folder")
    config.recommender.backbone.checkpoint = os.path.abspath(checkpoint) if checkpoint else ""
    _write_config(folder, config)
  reporter.info(f"{workdir}: a workdir, {'with' if has_data else 'without'} data")


def _fill(
  workdir: pathlib.Path, folder: pathlib.Path, *, with_data: bool, data_dir: str | None
) -> None:
  config = read_config(workdir)
  if not (workdir / "recommender.safetensors").is_file():
    raise UserError(f"{workdir}: holds no trained recommender; run mmesid_jax.train first")
  config = _without_places(config)
  data = []
  if with_data:
    place = reopen_workdir(workdir, data_dir).data_dir
    data = [name for name in (SEQUENCES, ITEMS, USERS, TIMES) if (place / name).is_file()]
    (folder / DATA).mkdir()
    for name in data:
      if place.is_relative_to(workdir):
        check_link(place / name, workdir)
      shutil.copyfile(place / name, folder / DATA / name)
  elif data_dir:
    raise UserError("--data_dir: belongs to --with_data")
  for name in filter(lambda name: os.path.lexists(workdir / name), (*ARTIFACTS, *REPORTS)):
    check_link(workdir / name, workdir)
    if name in ARTIFACTS:
      _copy_artifact(workdir / name, folder / name, ARTIFACTS[name])
    elif name in EVALUATIONS:
      found = read_json_object(workdir / name) | {"config": flatten(config)}
      (folder / name).write_text(json.dumps(found, indent=1) + "\n")
    else:
      shutil.copyfile(workdir / name, folder / name)
  _write_config(folder, config)
  evaluation = None
  if (folder / EVALUATION).exists():
    evaluation = read_json_object(folder / EVALUATION)
  try:
    card = model_card(workdir.resolve().name, config, evaluation, data)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise UserError(
      f"{workdir / EVALUATION}: is not as evaluate writes it ({error!r}); delete it, or evaluate "
      "again"
    ) from None
  (folder / CARD).write_text(card, encoding="utf-8")


def _copy_artifact(source: pathlib.Path, target: pathlib.Path, stage: str) -> None:
  """Copies an artifact whose header is whole, without the paths of feature tables in it."""
  kept = read_header(source, stage).get("config", {})
  names = {k: pathlib.PurePath(v).name for k, v in kept.items() if k.startswith("features.")}
  if names.items() <= kept.items():
    shutil.copyfile(source, target)
    return
  tensors, header = read_artifact(source, stage)
  del header["schema"]
  write_artifact(target, tensors, header | {"config": kept | names})


def _without_places(config: ConfigDict) -> ConfigDict:
  """The configuration with names of files in the place of paths, which would tell others how this
  machine is laid out."""
  config = config.copy_and_resolve_references()
  config.data.update(source="files", dir=DATA)
  for section, keys in (
    (config.recommender.backbone, ("checkpoint",)),
    (config.features, tuple(config.features)),
  ):
    for key in keys:
      section[key] = pathlib.PurePath(section[key]).name
  config.recommender.lora.start = ""  # only training reads it
  return config


def _write_config(folder: pathlib.Path, config: ConfigDict) -> None:
  text = json.dumps(parse_json(config.to_json_best_effort()), indent=1, sort_keys=True)
  (folder / CONFIG).write_text(text + "\n")


def _copy_known(source: pathlib.Path, folder: pathlib.Path) -> None:
  if not source.is_dir():
    raise UserError(f"--source={source}: no such folder or {ZIP} file")
  for name in NAMES:
    if os.path.lexists(file := source / name):
      check_link(file, source)
      if not file.is_file():
        raise UserError(f"{file}: is not a file")
      (folder / name).parent.mkdir(exist_ok=True)
      shutil.copyfile(file, folder / name)


def _zip(folder: pathlib.Path, file: pathlib.Path) -> None:
  """Without compression, so that a file is never larger than it looks; the bytes do not depend on
  the time."""
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name in filter(lambda name: (folder / name).exists(), NAMES):
      with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
        with open_to_read(folder / name) as content:
          shutil.copyfileobj(content, member, 1 << 20)


def _unzip(source: pathlib.Path, folder: pathlib.Path) -> None:
  if not source.is_file():
    raise UserError(f"--source={source}: no such file")
  try:
    with zipfile.ZipFile(source) as archive:
      for member in archive.infolist():
        if member.filename not in NAMES or member.compress_type != zipfile.ZIP_STORED:
          raise UserError(
            f"{source}: {member.filename!r} is not as push writes it (its own names, not "
            "compressed); nothing was unpacked"
          )
        target = folder / member.filename
        target.parent.mkdir(exist_ok=True)
        with archive.open(member) as content, target.open("xb") as file:
          shutil.copyfileobj(content, file, 1 << 20)
  except (
    *(zipfile.BadZipFile, EOFError, FileExistsError, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError),  # of numbers and names in a damaged file
  ) as error:
    raise _damaged(source, error) from None
  except OSError as error:
    if error.errno == errno.EINVAL:  # it says that a part begins before the file
      raise _damaged(source, error) from None
    raise


def _damaged(source: pathlib.Path, error: Exception) -> UserError:
  return UserError(f"{source}: is damaged, or no file of push ({error!r})")


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
  """Turns the errors of the hub and of the network into one line."""
  import httpx

  try:
    yield
  except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:  # theirs are among these
    first = str(error).strip().split("\n")[0]
    raise UserError(f"--repo={repo}: {type(error).__name__}: {first}") from None


def _say(place: object, *, with_data: bool) -> None:
  data = "with the histories of all users" if with_data else "without the data"
  reporter.info(f"{place}: the model, its figures and a card, {data}")
