"""Examines the semantic IDs of a workdir: use of the codebooks, geometry, pictures.

Trains nothing. Writes semantic_ids.json (all figures) and semantic_ids.html (a page to read).
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebook_health import measure_health, residual_norms
from mmesid_jax.evaluation.geometry import effective_rank, kendall_tau, principal_plane, spectrum
from mmesid_jax.files.artifact import read_header, write_text
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.reports import id_plots
from mmesid_jax.reports.id_page import semantic_id_page
from mmesid_jax.stages import recommender_stage, semantic_id_stage
from mmesid_jax.stages.item_batches import CHUNK, encode_table
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS
from mmesid_jax.stages.workdir import Workdir

FIGURES, PAGE = "semantic_ids.json", "semantic_ids.html"
SPECTRUM_ITEMS = 16_384  # of a spectrum; a random sample of a larger catalogue

Tables = Mapping[str, np.ndarray]  # modality -> [I, width]


def examine_semantic_ids(workdir: Workdir) -> dict[str, Any]:
  """Writes both files and returns the content of the JSON file.

  "health": as codebook_health.measure_health. "count_LC": number of items of every code.
  "residual_norm": the share that the levels leave. "tau": modality -> column -> how well the items'
  sums of code vectors keep the order of their features; column "quantized" for the artifact,
  "before" and "after" for the code tables of the recommender before and after its training.
  "inputs": "before", "after" -> part of the item token -> its spectrum. "notes": what is left out,
  and why.

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
  code_sums = {m: _code_sums(ids.codes[m], ids.codebooks[m]) for m in features}
  num_codes = next(iter(ids.codebooks.values())).shape[1]
  encoders = {
    "before": recommender_stage.init_model(workdir).items,
    **_trained_items(workdir, notes),
  }
  figures = {
    "num_items": workdir.dataset.num_items,
    "dataset": workdir.dataset.fingerprint,
    "fingerprint": header["fingerprint"],
    "health": measure_health(codes, num_codes, workdir.dataset.categories()[1:]),
    "count_LC": {
      m: [np.bincount(code_E, minlength=num_codes).tolist() for code_E in code_EL.T]
      for m, code_EL in codes.items()
    },
    "residual_norm": _measure_residuals(workdir, ids, features),
    "tau": _measure_taus(workdir, features, code_sums, encoders, notes),
    "inputs": {when: _measure_spectra(items, notes) for when, items in encoders.items()},
    "notes": notes,
  }
  planes = {m: (principal_plane(x[1:]), codes[m][:, 0]) for m, x in code_sums.items()}
  pictures = id_plots.make_pictures(figures, planes)
  write_text(workdir.path / FIGURES, json.dumps(figures, indent=1) + "\n")
  write_text(workdir.path / PAGE, semantic_id_page(str(workdir.path), figures, pictures))
  return figures


def _trained_items(workdir: Workdir, notes: list[str]) -> dict[str, ItemEncoder]:
  """{"after": the items of the workdir's recommender}, {} unless it was trained on these IDs."""
  path = workdir.artifact(RECOMMENDER.name)
  if not path.exists():
    notes.append(f"No figures after training: {path.name} does not exist.")
  elif read_header(path, RECOMMENDER.name)["fingerprint"] != RECOMMENDER.fingerprint(workdir):
    notes.append(f"No figures after training: {path.name} was trained on other IDs or settings.")
  else:
    return {
      "after": recommender_stage.load_recommender(
        workdir.path, workdir.config, pretrained=False
      ).items
    }
  return {}


def _code_sums(code_IL: np.ndarray, book_LCD: np.ndarray) -> np.ndarray:
  """[I, D]: the sums of the items' code vectors."""
  return sum(book_CD[code_I] for book_CD, code_I in zip(book_LCD, code_IL.T, strict=True))


def _measure_residuals(
  workdir: Workdir, ids: semantic_id_stage.SemanticIDs, features: Tables
) -> dict[str, list[float]]:
  model, norms = semantic_id_stage.load_mm_rqvae(workdir.path, workdir.config)[0], {}
  for m, part in model.by_modality.items():
    z_ED = encode_table(part, features[m], ids.codebooks[m].shape[-1])
    norms[m] = residual_norms(z_ED, ids.codes[m][1:], ids.codebooks[m])
  return norms


def _measure_taus(
  workdir: Workdir,
  features: Tables,
  code_sums: Tables,
  encoders: Mapping[str, ItemEncoder],
  notes: list[str],
) -> dict[str, dict[str, dict]]:
  compared = {(m, "quantized"): x for m, x in code_sums.items()}
  for when, items in encoders.items():
    for m, book_LCD in items.codebook_LCD.items():
      compared[m, when] = _code_sums(np.asarray(items.code_IL[m][...]), np.asarray(book_LCD[...]))
  taus: dict[str, dict[str, dict]] = {m: {} for m in features}
  for (m, column), x_ID in reporter.progress(compared.items(), "Kendall's tau"):
    try:
      taus[m][column] = kendall_tau(features[m], x_ID, workdir.dataset)._asdict()
    except ValueError as error:
      notes.append(f"No Kendall's tau: {error}.")
      break
  return taus


def _measure_spectra(items: ItemEncoder, notes: list[str]) -> dict[str, dict[str, Any]]:
  """Part of the item tokens -> width, effective rank, spectrum."""
  num_items = len(items.identity_ID[...]) - 1
  item_E = np.arange(1, num_items + 1)
  if num_items > SPECTRUM_ITEMS:
    item_E = np.sort(np.random.default_rng(0).permutation(item_E)[:SPECTRUM_ITEMS])
    if (note := f"Spectra: of {SPECTRUM_ITEMS:,} items, sampled at random.") not in notes:
      notes.append(note)
  found = {}
  for part, vectors in reporter.progress(_token_parts(items).items(), "spectra"):
    chunks = (item_E[i : i + CHUNK] for i in range(0, len(item_E), CHUNK))
    x_ED = np.concatenate([vectors(jnp.asarray(item_B)) for item_B in chunks])
    values = spectrum(x_ED)
    found[part] = {
      "width": x_ED.shape[1],
      "effective_rank": effective_rank(values),
      "spectrum": [float(f"{value:.5g}") for value in values],
    }
  return found


def _token_parts(items: ItemEncoder) -> dict[str, Callable[[jax.Array], np.ndarray]]:
  """Name -> function from item ids [B] to that part of their tokens, float32 [B, width].

  Several parts are combined as in the encoder: side by side before an MLP, summed otherwise."""

  def combine(*parts):
    def vectors(item_B):
      outputs = [np.asarray(part(item_B), np.float32) for part in parts]
      return np.concatenate(outputs, axis=1) if items.kind == "mlp" else sum(outputs)

    return vectors

  projected = {m: functools.partial(items.feature_vectors, m) for m in items.modalities}
  quantized = {m: functools.partial(items.code_vectors, m) for m in items.code_IL}
  named = {
    "item token": [items],
    **{f"{m} projected": [part] for m, part in projected.items()},
    "all projected": [*projected.values()],
  }
  if quantized:
    named["all codes"] = [*quantized.values()]
    named["projected and codes"] = [*projected.values(), *quantized.values()]
  return {name: combine(*parts) for name, parts in named.items()}
