"""New items: codes from a workdir's MM-RQ-VAE, and their place in its recommender.

A file of new items holds `codes.<modality>` int32 [E, L] and `features.<modality>` float32 [E, V],
the rows that were encoded; its header says which modalities were given.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.paths import local_path
from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import BASELINES, STAGES
from mmesid_jax.data.features import new_features, read_new_features
from mmesid_jax.data.whitening import Whitening
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files import artifact
from mmesid_jax.files.atomic import check_new_file
from mmesid_jax.models.blend import BlendModel, ServableModel
from mmesid_jax.models.extend_catalogue import with_new_items
from mmesid_jax.models.generate.generated_ranking import GeneratedRanking
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.stages import blend_stage, item_batches, recommender_stage, semantic_id_stage
from mmesid_jax.stages.evidence_stages import whitened_directions
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS

STAGE = "new_items"

# modality -> a file, or an array [E, V]; either has one row a new item and none for padding
Sources = Mapping[str, str | os.PathLike | np.ndarray]


@dataclasses.dataclass(frozen=True)
class NewItems:
  """N items that training never saw.

  rows: every modality of the training, as given or the mean of the training items. given: the
  modalities that were given. quantizer: the fingerprint of the artifact that made the codes.
  """

  rows: dict[str, np.ndarray]  # modality -> float32 [E, V]
  codes: dict[str, np.ndarray]  # modality -> int32 [E, L]
  given: tuple[str, ...]
  quantizer: str

  def __len__(self) -> int:
    return len(next(iter(self.rows.values())))


def encode_new_items(workdir_path: pathlib.Path, config: ConfigDict, sources: Sources) -> NewItems:
  """Codes of new items by the nearest code on every level, from semantic_ids.safetensors alone.

  A modality that is not given (new items have no collaborative vectors) is read as the mean of the
  training items' vectors. Raises UserError.
  """
  model, means, fingerprint = semantic_id_stage.load_mm_rqvae(workdir_path, config)
  given = _read(sources, {m: len(mean_V) for m, mean_V in means.items()})
  E = len(next(iter(given.values())))
  rows = {m: given[m] if m in given else np.tile(x_V, (E, 1)) for m, x_V in means.items()}
  padded = {m: np.pad(x, ((1, 0), (0, 0))) for m, x in rows.items()}
  found = semantic_id_stage.encode_catalogue(item_batches.FeatureTables(model, padded), padded)
  codes = {m: code_EL[1:] for m, code_EL in found.items()}
  return NewItems(rows, codes, tuple(given), fingerprint)


def write_new_items(path: pathlib.Path, new: NewItems) -> None:
  """Writes new items to a file."""
  tensors = {f"codes.{m}": x for m, x in new.codes.items()}
  tensors |= {f"features.{m}": x for m, x in new.rows.items()}
  header = {"stage": STAGE, "num_items": len(new), "given": new.given, "quantizer": new.quantizer}
  artifact.write_artifact(path, tensors, header)


def read_new_items(path: pathlib.Path) -> NewItems:
  """The new items in a file. Raises UserError for a file of another kind."""
  found, header = artifact.read_artifact(path, STAGE)
  rows, codes = (artifact.strip_prefix(found, prefix) for prefix in ("features.", "codes."))
  if not header["given"] or not set(header["given"]) <= rows.keys():
    raise UserError(
      f"{path}: given names {header['given']}, expected some of {sorted(rows)}; run "
      f"{artifact.MAKERS[STAGE]} to write it again (delete the file first)"
    )
  return NewItems(rows, codes, tuple(header["given"]), header["quantizer"])


def append_new_items(
  model: ServableModel,
  workdir_path: pathlib.Path,
  config: ConfigDict,
  source: str | os.PathLike | Sources,
) -> ServableModel:
  """The workdir's model with new items appended, as `with_new_items` of its parts says.

  source: a file that `write` wrote, or their features by modality, files or arrays, as they were
  before whitening. Raises UserError for what does not fit, or codes of another quantizer.
  """
  if isinstance(model, GeneratedRanking):
    network, given = _append_to_network(model.model, workdir_path, config, source)
    for modality in network.generate.modalities:
      if modality not in given:
        raise UserError(
          f"{workdir_path}: new items without {modality} have no codes of it, which are generated; "
          f"give their vectors of {modality}"
        )
    return model.replace(network)
  if not isinstance(model, BlendModel):
    return _append_to_network(model, workdir_path, config, source)[0]
  network, given = _append_to_network(model.network, workdir_path, config, source)
  content = blend_stage.load_content_whitenings(workdir_path)
  unit_EW = {m: whitened_directions(x, content[m]) for m, x in given.items() if m in content}
  evidence = model.evidence.with_new_items(unit_EW, network.num_items - model.num_items)
  return model.replace(network=network, evidence=evidence)


def _append_to_network(
  model: RecommenderModel,
  workdir_path: pathlib.Path,
  config: ConfigDict,
  source: str | os.PathLike | Sources,
) -> tuple[RecommenderModel, dict[str, np.ndarray]]:
  """The network with the new items, and their features by modality, [E, V]. Raises UserError."""
  maps = recommender_stage.load_whitenings(workdir_path, config)
  from_file, codes = isinstance(source, str | os.PathLike), {}
  name = str(source) if from_file else "new items"
  if from_file or len(model.items.code_IL):
    new = (
      read_new_items(pathlib.Path(source))
      if from_file
      else encode_new_items(workdir_path, config, source)
    )
    _check_quantizer(model, workdir_path, new, name)
    source, codes = {m: new.rows[m] for m in new.given}, new.codes
  given = _read(source, _widths(model, maps))
  features = {m: maps[m](x) if m in maps else x for m, x in given.items()}
  try:
    return with_new_items(model, features, codes), given
  except ValueError as error:
    raise UserError(f"{name}: do not fit the model of {workdir_path} ({error})") from error


def _widths(model: RecommenderModel, maps: Mapping[str, Whitening]) -> dict[str, int]:
  """modality -> width of its vectors before whitening."""
  tables = model.items.feature_IV
  return {
    m: len(maps[m].mean_V) if m in maps else tables[m][...].shape[1] for m in model.items.modalities
  }


def _check_quantizer(
  model: RecommenderModel, workdir_path: pathlib.Path, new: NewItems, name: str
) -> None:
  if not len(model.items.code_IL):
    return  # codes are not read
  path = workdir_path / f"{RECOMMENDER.name}.safetensors"
  upstream = artifact.read_header(path, RECOMMENDER.name).get("upstream", {})
  if upstream.get(SEMANTIC_IDS.name) != new.quantizer:
    raise UserError(
      f"{name}: codes of another quantizer than the one that {path} was trained with; encode them "
      "with the semantic_ids.safetensors beside it"
    )


def _read(sources: Sources, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
  """modality -> float32 [E, V]. Raises UserError for an unknown modality, a table that does not
  fit, or tables of different lengths."""
  if not sources:
    raise UserError(f"no features of new items; expected some of {', '.join(widths)}")
  rows = {}
  for m, source in sources.items():
    if m not in widths:
      raise UserError(f"{m}: no such modality; the model reads {', '.join(widths)}")
    if isinstance(source, str | os.PathLike):
      rows[m] = read_new_features(source, width=widths[m])
    else:
      rows[m] = new_features(np.asarray(source), f"features of {m}", width=widths[m])
  (first, x), *others = rows.items()
  for m, y in others:
    if len(y) != len(x):
      raise UserError(f"{len(x)} new items by {first}, {len(y)} by {m}; expected as many rows")
  return rows


def encode_and_write(
  workdir: pathlib.Path, features: Sequence[str], output: pathlib.Path, *, overwrite: bool = False
) -> None:
  """Encodes new items and writes them to `output`, .safetensors.

  features: MODALITY=FILE each. Raises UserError, also for a file that exists, unless `overwrite`.
  """
  sources = {}
  for text in features:
    modality, equals, file = text.partition("=")
    if not (modality and equals and file):
      raise UserError(f"--features={text}: expected MODALITY=FILE")
    if modality in sources:
      raise UserError(f"--features={text}: {modality} is given twice")
    try:
      sources[modality] = local_path(file)
    except ValueError as error:
      raise UserError(f"--features={text}: {error}") from None
  _check_output(output)
  check_new_file(output, overwrite=overwrite, inputs=map(pathlib.Path, sources.values()))
  new = encode_new_items(workdir, read_config(workdir), sources)
  write_new_items(output, new)
  reporter.info(f"{output}: {len(new):,} new items")
  for m, code_EL in new.codes.items():
    source = "" if m in new.given else " (not given: from the mean vector of the training items)"
    reporter.info(f"{m}: {len(np.unique(code_EL, axis=0)):,} different IDs{source}")


def _check_output(output: pathlib.Path) -> None:
  """Raises UserError for another suffix, and for the name of a stage's artifact in a workdir."""
  if output.suffix != ".safetensors":
    raise UserError(f"--output={output}: expected a name that ends in .safetensors")
  taken = {*STAGES, *BASELINES, *artifact.MAKERS} - {STAGE}
  if output.stem in taken and (output.parent / "config.json").exists():
    raise UserError(f"--output={output}: is the name of an artifact of a run; name another file")
