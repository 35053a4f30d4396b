"""Are the semantic IDs any good: health, geometry and pictures of what the semantic-ID stage wrote.

Trains nothing. Writes semantic_ids.json (all figures) and semantic_ids.html (a page to read).
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebook_health import health, residual_norms
from mmesid_jax.evaluation.geometry import effective_rank, kendall_tau, principal_plane, spectrum
from mmesid_jax.files.artifact import read_header, write_text
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.reports import id_plots
from mmesid_jax.reports.id_page import page
from mmesid_jax.stages import recommender_stage, semantic_id_stage
from mmesid_jax.stages.item_batches import CHUNK, encode_table
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS
from mmesid_jax.stages.workdir import Workdir

FIGURES, PAGE = "semantic_ids.json", "semantic_ids.html"
SPECTRUM_ITEMS = 16_384  # that a spectrum is taken of, drawn at random from a larger catalogue

Tables = Mapping[str, np.ndarray]  # modality -> [I + 1, width]


def examine(workdir: Workdir) -> dict[str, Any]:
  """Writes both files and returns what the first one holds.

  "health" is that of codebooks.health, "count_LC" the items of every code, "residual_norm" what the
  levels leave. "tau": modality -> column -> how far the items' sums of code vectors keep the order
  of their features; "quantised" those of the artifact, "before" and "after" those of the
  recommender's code tables, before and after its training. "inputs": "before", "after" -> part of
  the item token -> its spectrum. "notes": what is left out, and why.

  Raises UserError where the stage's artifact, or what it was made from, is missing or is not the
  workdir's. A recommender that is missing or was trained on other IDs is left out.
  """
  path = workdir.artifact(SEMANTIC_IDS.name)
  header, features = read_header(path, SEMANTIC_IDS.name), workdir.features()
  if header["fingerprint"] != SEMANTIC_IDS.fingerprint(workdir):
    raise UserError(
      f"{path}: made from other data, features or settings than {workdir.path} has now; "
      "mmesid_jax.train --overwrite makes it again"
    )
  ids, notes = semantic_id_stage.read_semantic_ids(workdir), []
  codes = {m: ids.codes[m][1:] for m in features}
  decoded = {m: _decoded(ids.codes[m], ids.codebooks[m]) for m in features}
  num_codes = next(iter(ids.codebooks.values())).shape[1]
  encoders = {"before": recommender_stage.init_model(workdir).items, **_trained(workdir, notes)}
  figures = {
    "num_items": workdir.dataset.num_items,
    "dataset": workdir.dataset.fingerprint,
    "fingerprint": header["fingerprint"],
    "health": health(codes, num_codes, workdir.dataset.categories()[1:]),
    "count_LC": {
      m: [np.bincount(code_E, minlength=num_codes).tolist() for code_E in code_EL.T]
      for m, code_EL in codes.items()
    },
    "residual_norm": _residual_norms(workdir, ids, features),
    "tau": _taus(workdir, features, decoded, encoders, notes),
    "inputs": {when: _spectra(items, notes) for when, items in encoders.items()},
    "notes": notes,
  }
  planes = {m: (principal_plane(x[1:]), codes[m][:, 0]) for m, x in decoded.items()}
  drawn = id_plots.of(figures, planes)
  write_text(workdir.path / FIGURES, json.dumps(figures, indent=1) + "\n")
  write_text(workdir.path / PAGE, page(str(workdir.path), figures, drawn))
  return figures


def _trained(workdir: Workdir, notes: list[str]) -> dict[str, ItemEncoder]:
  """{"after": the items of the workdir's recommender}, {} unless it was trained on these IDs."""
  path = workdir.artifact(RECOMMENDER.name)
  if not path.exists():
    notes.append(f"Nothing of after training: {path.name} is not there.")
  elif read_header(path, RECOMMENDER.name)["fingerprint"] != RECOMMENDER.fingerprint(workdir):
    notes.append(f"Nothing of after training: {path.name} was trained on other IDs or settings.")
  else:
    return {
      "after": recommender_stage.load_recommender(
        workdir.path, workdir.config, pretrained=False
      ).items
    }
  return {}


def _decoded(code_IL: np.ndarray, book_LCD: np.ndarray) -> np.ndarray:
  """[I + 1, D]: the sums of the items' code vectors."""
  return sum(book_CD[code_I] for book_CD, code_I in zip(book_LCD, code_IL.T, strict=True))


def _residual_norms(
  workdir: Workdir, ids: semantic_id_stage.SemanticIDs, features: Tables
) -> dict[str, list[float]]:
  model, norms = semantic_id_stage.load_mm_rqvae(workdir.path, workdir.config)[0], {}
  for m, part in model.by_modality.items():
    z_ED = encode_table(part, features[m], ids.codebooks[m].shape[-1])
    norms[m] = residual_norms(z_ED, ids.codes[m][1:], ids.codebooks[m])
  return norms


def _taus(
  workdir: Workdir,
  features: Tables,
  decoded: Tables,
  encoders: Mapping[str, ItemEncoder],
  notes: list[str],
) -> dict[str, dict[str, dict]]:
  compared = {(m, "quantised"): x for m, x in decoded.items()}
  for when, items in encoders.items():
    for m, book_LCD in items.codebook_LCD.items():
      compared[m, when] = _decoded(np.asarray(items.code_IL[m][...]), np.asarray(book_LCD[...]))
  taus: dict[str, dict[str, dict]] = {m: {} for m in features}
  for (m, column), x_ID in tqdm(compared.items(), "Kendall's tau", delay=3, leave=False):
    try:
      taus[m][column] = kendall_tau(features[m], x_ID, workdir.dataset)._asdict()
    except ValueError as error:
      notes.append(f"No Kendall's tau: {error}.")
      break
  return taus


def _spectra(items: ItemEncoder, notes: list[str]) -> dict[str, dict[str, Any]]:
  """Of the item tokens and of what they are made of: width, effective rank, spectrum."""
  num_items = len(items.identity_ID[...]) - 1
  item_E = np.arange(1, num_items + 1)
  if num_items > SPECTRUM_ITEMS:
    item_E = np.sort(np.random.default_rng(0).permutation(item_E)[:SPECTRUM_ITEMS])
    if (note := f"Spectra are of {SPECTRUM_ITEMS:,} items, drawn at random.") not in notes:
      notes.append(note)
  found = {}
  for part, vectors in tqdm(_parts(items).items(), "spectra", delay=3, leave=False):
    chunks = (item_E[i : i + CHUNK] for i in range(0, len(item_E), CHUNK))
    x_ED = np.concatenate([vectors(jnp.asarray(item_B)) for item_B in chunks])
    values = spectrum(x_ED)
    found[part] = {
      "width": x_ED.shape[1],
      "effective_rank": effective_rank(values),
      "spectrum": [float(f"{value:.5g}") for value in values],
    }
  return found


def _parts(items: ItemEncoder) -> dict[str, Callable[[jax.Array], np.ndarray]]:
  """Name -> what gives that part of the tokens of item ids [B], float32 [B, width]. Several parts
  are put together as the encoder does: side by side in front of an MLP, added up otherwise."""

  def together(*parts):
    def vectors(item_B):
      found = [np.asarray(part(item_B), np.float32) for part in parts]
      return np.concatenate(found, axis=1) if items.kind == "mlp" else sum(found)

    return vectors

  projected = {m: functools.partial(items.projected, m) for m in items.modalities}
  quantised = {m: functools.partial(items.quantised, m) for m in items.code_IL}
  named = {
    "item token": [items],
    **{f"{m} projected": [part] for m, part in projected.items()},
    "all projected": [*projected.values()],
  }
  if quantised:
    named["all codes"] = [*quantised.values()]
    named["projected and codes"] = [*projected.values(), *quantised.values()]
  return {name: together(*parts) for name, parts in named.items()}
