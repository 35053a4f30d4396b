"""The verdict on semantic IDs: three questions, each answered by figures and thresholds."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mmesid_jax.evaluation.codebook_health import ENOUGH_USED

# The thresholds, each (yes, partly); what misses both is a no. They are rules of thumb that decide
# nothing but the answers below. Where they come from: on Amazon Beauty good codes use all of their
# codebooks, give every item its own ID and have a tau above 0.5; codebooks that collapsed used
# less than a tenth, 1 to 20 % of the IDs were lost to collisions, and tau was 0.25 to 0.43.
USED = (ENOUGH_USED, 0.5)  # share of codes in use, at the worst level of any modality; at least
COLLISIONS = (0.01, 0.05)  # collision rate of all modalities' codes together; at most
TAU = (0.5, 0.3)  # Kendall's tau of the codes, of the worst modality; at least

Answer = Literal["yes", "partly", "no"]


class Finding(NamedTuple):
  """A question about the semantic IDs, its answer, and sentences with the figures."""

  question: str
  answer: Answer
  text: str


def find_verdict(figures: Mapping[str, Any]) -> list[Finding]:
  """Answers from the figures of `id_report`; without a tau, distances are left out."""
  findings = [_codes_in_use(figures["health"]), _own_ids(figures["health"], figures["num_items"])]
  if any("quantized" in columns for columns in figures["tau"].values()):
    findings.append(_distances(figures["tau"]))
  return findings


def verdict_text(findings: list[Finding]) -> str:
  """A line for every finding, for terminals."""
  return "\n".join(f"{f.question} {f.answer.capitalize()}. {f.text}" for f in findings)


def _answer(value: float, thresholds: tuple[float, float]) -> Answer:
  """For a value of which more is better."""
  yes, partly = thresholds
  return "yes" if value >= yes else "partly" if value >= partly else "no"


def _codes_in_use(health: Mapping[str, Mapping]) -> Finding:
  usage, modality, level = min(
    (level["usage"], modality, number)
    for modality, figures in health.items()
    for number, level in enumerate(figures.get("levels", []), 1)
  )
  answer = _answer(usage, USED)
  if answer == "yes":
    text = f"Every level uses at least {usage:.1%} of its codes."
  else:
    text = f"Level {level} of {modality} uses only {usage:.1%} of its codes."
  if answer == "no":
    text += " The codebook has collapsed: most code vectors have no items."
  return Finding("Are the codes in use?", answer, text)


def _own_ids(health: Mapping[str, Mapping], num_items: int) -> Finding:
  rate, largest = health["joint"]["collision_rate"], health["joint"]["largest_group"]
  answer = _answer(-rate, (-COLLISIONS[0], -COLLISIONS[1]))
  distinct = round((1 - rate) * num_items)
  text = f"{num_items:,} items have {distinct:,} different IDs."
  if largest > 1:
    text += f" The most shared ID belongs to {largest:,} items."
  return Finding("Does every item have its own ID?", answer, text)


def _distances(taus: Mapping[str, Mapping[str, Mapping]]) -> Finding:
  tau, modality = min((c["quantized"]["mean"], m) for m, c in taus.items() if "quantized" in c)
  answer = _answer(tau, TAU)
  how = {"yes": "keep most of", "partly": "keep some of", "no": "lose most of"}[answer]
  text = (
    f"The codes {how} the order in which items are near to each other: Kendall's tau to the "
    f"features is {tau:.2f} for {modality}, the lowest of all modalities."
  )
  if after := taus[modality].get("after"):
    text += f" After training the recommender it is {after['mean']:.2f}."
  return Finding("Do distances survive?", answer, text)
