"""The model card of a workdir: README.md as model hubs show it, filled in from its own files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

import mmesid_jax
from mmesid_jax.config.schema import flatten, modalities
from mmesid_jax.display.escape import escape_line
from mmesid_jax.display.table import format_markdown_table
from mmesid_jax.evaluation.ranking import PROTOCOLS
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.readers import parse_json

SHOWN = ("nDCG@5", "nDCG@10", "HR@5", "HR@10")
PAPER = "https://arxiv.org/abs/2509.02017"


def model_card(
  name: str, config: ConfigDict, evaluation: Mapping[str, Any] | None, data: Sequence[str]
) -> str:
  """The card, Markdown with a YAML header, as Hugging Face reads it.

  Args:
    name: of the model.
    config: of its training.
    evaluation: the content of evaluation.json, None where the model was not evaluated.
    data: names of the files of data that come with the model.
  """
  parts = [_header(name, evaluation), f"# {name}", _about(config), _use(name, config, data)]
  parts += [_results(evaluation), _settings(config), _limits(data), _source()]
  return "\n\n".join(filter(None, parts)) + "\n"


def _header(name: str, evaluation: Mapping[str, Any] | None) -> str:
  lines = ["library_name: mmesid_jax", "tags: [recommendation, sequential-recommendation]"]
  if evaluation:  # JSON is YAML, and quotes whatever a name holds
    metrics = [
      {"type": f"{protocol} {metric}", "name": f"{model}: {metric} ({protocol})", "value": value}
      for model, found in evaluation["models"].items()
      for protocol in PROTOCOLS
      for metric, value in _shown(found[protocol]).items()
    ]
    result = {
      "task": {"type": "sequential-recommendation"},
      "dataset": {"type": evaluation["dataset"][:16], "name": "the data set of training"},
      "metrics": metrics,
    }
    lines.append(f"model-index: {json.dumps([{'name': name, 'results': [result]}])}")
  return "\n".join(["---", *lines, "---"])


def _shown(of_protocol: Mapping[str, Any]) -> dict[str, float]:
  return {m: round(of_protocol[m]["mean"], 4) for m in SHOWN if m in of_protocol}


def _about(config: ConfigDict) -> str:
  c = config.recommender
  backbone = f"{c.layers} layers of width {c.width}, trained from scratch"
  if c.backbone.checkpoint:
    backbone = f"the pretrained {escape_line(c.backbone.checkpoint)}, "
    backbone += f"LoRA of rank {c.lora.rank}" if c.backbone.kind == "lora" else c.backbone.kind
  return (
    "A recommender that reads the items of a user and ranks the whole catalogue: multimodal "
    f"semantic IDs ({', '.join(modalities(config))}) and a Llama ({backbone}). Made with "
    f"mmesid_jax {mmesid_jax.__version__}."
  )


def _use(name: str, config: ConfigDict, data: Sequence[str]) -> str:
  folder = f"runs/{name}"
  needs = " --checkpoint=DIR" if config.recommender.backbone.checkpoint else ""
  pull = f"python -m mmesid_jax.pull --repo=REPOSITORY --workdir={folder}{needs}"
  lines = ["## Use", "```", pull]
  if data:
    lines.append(f"python -m mmesid_jax.recommend --workdir={folder} --history=1,2,3")
    return "\n".join([*lines, "```"])
  python = [
    "```python",
    "from mmesid_jax.serving import Ranker",
    "",
    f'top = Ranker.load("{folder}").top_items([[1, 2, 3]], top_k=10)',
    "```",
  ]
  return "\n".join([*lines, "```", "", *python])


def _results(evaluation: Mapping[str, Any] | None) -> str:
  if not evaluation:
    return "## Results\n\nNot evaluated."
  tables = []
  for protocol in PROTOCOLS:
    rows = [
      [model, *(_cell(found[protocol].get(metric)) for metric in SHOWN)]
      for model, found in evaluation["models"].items()
    ]
    how = {
      "masked": "Masked: items of the history are left out of the ranking.",
      "unmasked": "Unmasked: all items are ranked.",
    }[protocol]
    tables.append(f"{how}\n\n{format_markdown_table(['model', *SHOWN], rows)}")
  intro = (
    f"{evaluation['users']:,} users, the item held out for the {evaluation['split']}, among all "
    "items; in brackets 95 % bootstrap intervals over users. The seed is "
    f"{evaluation['seed']}; results also differ between seeds."
  )
  return "\n\n".join(["## Results", intro, *tables])


def _cell(found: Mapping[str, float] | None) -> str:
  return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]" if found else ""


def _settings(config: ConfigDict) -> str:
  keys = ("preset", "seed", "stages", "data.split", "recommender.head", "recommender.epochs")
  flat = flatten(config)
  rows = [[f"`{key}`", flat[key]] for key in keys if key in flat]
  table = format_markdown_table(["setting", "value"], rows)
  digest = json_sha256(parse_json(config.to_json_best_effort()))[:16]
  return f"## Settings\n\n{table}\n\nAll of them are in `config.json` ({digest})."


def _limits(data: Sequence[str]) -> str:
  held = (
    f"It comes with the data of its training ({', '.join(data)}), histories of users among them."
    if data
    else "The data of its training are not part of it: it knows items by their numbers alone. With "
    "the data, `--data_dir` gives names and users."
  )
  return (
    "## Limits\n\nIt knows the items of its training, and prefers frequent items. It was "
    f"measured on past events, not on people who saw its lists. {held}"
  )


def _source() -> str:
  return (
    f"## Source\n\nThe method is that of MME-SID (CIKM 2025), [arXiv 2509.02017]({PAPER}); "
    "mmesid_jax is another implementation, and goes further."
  )
