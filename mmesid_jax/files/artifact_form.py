"""Forms of artifacts: FORMS says what each kind holds, `find_fault` what differs in a file.

Digests say that a file is as it was written; its form says that it is what the reader expects,
whoever wrote it. A `*` in a name stands for a modality. Every modality that any tensor of a file
names must have all tensors and fields with a `*`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mmesid_jax.config.rules import Rule
from mmesid_jax.files.readers import parse_json

# name of a tensor -> its type, as numpy names it, and its shape
Described = Mapping[str, tuple[str, tuple[int, ...]]]
Sizes = dict[tuple[str, str], int]  # letter, modality -> size

OF_A_MODALITY = "VW"  # letters whose size differs from modality to modality
MISSING = object()

TEXT = Rule(lambda x: isinstance(x, str), "a text")
TEXTS = Rule(lambda x: isinstance(x, list) and all(map(TEXT.accepts, x)), "a list of texts")
WHOLE = Rule(lambda x: type(x) is int and x >= 0, "a whole number from 0")
FEW = Rule(lambda x: type(x) is int and 1 <= x <= 1000, "a whole number from 1 to 1,000")
COUNT = Rule(lambda x: type(x) is int and x >= 1, "a whole number from 1")
NUMBER = Rule(lambda x: type(x) in (int, float) and math.isfinite(x), "a number")
SHARE = Rule(lambda x: NUMBER.accepts(x) and 0 <= x <= 1, "a number from 0 to 1")
ABOVE_ZERO = Rule(lambda x: NUMBER.accepts(x) and x > 0, "a number > 0")
NUMBERS = Rule(lambda x: isinstance(x, list) and all(map(NUMBER.accepts, x)), "a list of numbers")
MAPPING = Rule(lambda x: isinstance(x, dict), "a mapping")
TEXT_BY_NAME = Rule(
  lambda x: isinstance(x, dict) and all(map(TEXT.accepts, x.values())), "a mapping to texts"
)


def parse_mapping(value: Any) -> dict[str, Any] | None:
  """A mapping, or what is in its JSON text, as earlier versions kept it; None for anything else."""
  try:
    found = parse_json(value) if isinstance(value, str) else value
  except ValueError:
    return None
  return found if isinstance(found, dict) else None


ANY = Rule(lambda x: True, "numbers")
POSITIVE = Rule(lambda x: x.min() > 0, "numbers > 0")
NOT_NEGATIVE = Rule(lambda x: x.min() >= 0, "numbers >= 0")
SHARES = Rule(lambda x: x.min() >= 0 and x.max() <= 1, "numbers from 0 to 1")
INCREASING = Rule(lambda x: bool((np.diff(x) > 0).all()), "increasing numbers")


class Tensor(NamedTuple):
  """Type, axes and values of a tensor.

  axes: letters, as docs/design.md lists them. Equal letters are equal sizes; a digit is its size.
  below: the letter whose size the ids in an integer tensor stay below; they count from 0.
  """

  axes: str
  dtype: str = "float32"
  values: Rule = ANY
  below: str = ""


class Group(NamedTuple):
  """Tensors that a file holds together; an optional group may be missing as a whole."""

  tensors: Mapping[str, Tensor]
  optional: bool = False


@dataclasses.dataclass(frozen=True)
class Form:
  """The contents of a kind of artifact.

  fields, optional: names of fields of the header, "a.b" for the field b of the mapping a. groups:
  all tensors but those of the model, which begin with "model.": code that builds the model knows
  these. rows: the letter of the tables' rows, num_items and for "I" one more, of padding.
  """

  fields: Mapping[str, Rule]
  groups: tuple[Group, ...]
  optional: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
  rows: str = "I"


MODEL = "model."
OF_A_STAGE = {
  "fingerprint": TEXT,
  "dataset": TEXT,
  "upstream": TEXT_BY_NAME,
  "num_items": COUNT,
}
SAVED = {  # not in all artifacts of earlier versions
  "config": Rule(lambda x: parse_mapping(x) is not None, "the keys of a configuration"),
  "items": TEXT_BY_NAME,
}
OF_TRAINING = {**SAVED, "best_epoch": WHOLE, "valid": MAPPING, "valid_by_epoch": NUMBERS}
CHOSEN = {  # settings of counts and content
  "settings.window": FEW,
  "settings.distance_decay": NUMBER,
  "settings.recency": SHARE,
  "settings.tail": SHARE,
  "settings.tau": ABOVE_ZERO,
  "settings.popularity": NUMBER,
  "settings.trend": NUMBER,
  "settings.repeats": NUMBER,
  "settings.*.width": COUNT,
  "settings.*.recency": SHARE,
  "settings.*.weight": NUMBER,
}
COUNTED = Group(
  {
    "follower": Tensor("IK", "int32", below="I"),
    "count": Tensor("IK", values=NOT_NEGATIVE),
    "share": Tensor("I", values=POSITIVE),
    "trend": Tensor("I"),
  }
)
WHITENINGS = {
  "whitening.*.mean": Tensor("V", "float64"),
  "whitening.*.map": Tensor("VW", "float64"),
}
CONTENT = {"unit.*": Tensor("IW"), **WHITENINGS}
WEIGHTING = {"weights": Tensor("2"), "newness": Tensor("")}
EVIDENCE = {"amounts": Tensor("E", values=INCREASING), "shares": Tensor("E", values=SHARES)}
RERANKER = {
  f"reranker.{name}": Tensor(axes)
  for name, axes in {
    **{"mean_F": "F", "factor_F": "F", "scale": "", "linear_F": "F"},
    **{"hidden_FH": "FH", "bias_H": "H", "output_H": "H"},
  }.items()
}

# the stage, or the command, that writes an artifact -> what is in it
FORMS = {
  "counts": Form({**OF_A_STAGE, **CHOSEN}, (COUNTED,), SAVED),
  "content": Form({**OF_A_STAGE, **CHOSEN}, (COUNTED, Group(CONTENT)), SAVED),
  "collaborative": Form(OF_A_STAGE, (Group({"items": Tensor("ID")}),), OF_TRAINING),
  "semantic_ids": Form(
    {**OF_A_STAGE, "health.*": MAPPING},
    (
      Group({"codebooks.*": Tensor("LCD"), "codes.*": Tensor("IL", "int32", below="C")}),
      Group({"means.*": Tensor("V")}, optional=True),  # not in those of earlier versions
    ),
    OF_TRAINING,
  ),
  "recommender": Form(
    OF_A_STAGE,
    (
      Group({"counts": Tensor("I", "int64", NOT_NEGATIVE)}),
      Group({"model.items.feature_IV.*": Tensor("IW")}),
      Group(
        {
          "model.items.codebook_LCD.*": Tensor("LCD"),
          "model.items.code_IL.*": Tensor("IL", "int32", below="C"),
        },
        optional=True,
      ),
      Group(WHITENINGS, optional=True),
    ),
    {**OF_TRAINING, "backbone": TEXT_BY_NAME},
  ),
  "blend": Form(
    {**OF_A_STAGE, "upstream.recommender": TEXT, **CHOSEN},
    (
      COUNTED,
      Group({**EVIDENCE, **WEIGHTING}),
      Group(CONTENT, optional=True),
      Group(RERANKER, optional=True),
    ),
    SAVED,
  ),
  "refreshed_counts": Form(
    {"blend": TEXT, "dataset": TEXT, "num_items": COUNT, "users": COUNT, "events": COUNT, **CHOSEN},
    (COUNTED, Group(EVIDENCE)),
  ),
  "new_items": Form(
    {"num_items": COUNT, "given": TEXTS, "quantizer": TEXT},
    (Group({"codes.*": Tensor("EL", "int32", NOT_NEGATIVE), "features.*": Tensor("EV")}),),
    rows="E",
  ),
}

# What a refit takes over of the tensors of a blend.
CHOSEN_BLEND = Form({}, (Group({**EVIDENCE, **WEIGHTING}), Group(RERANKER, optional=True)))


def find_wrong_setting(chosen: Mapping[str, Any], modalities: Sequence[str]) -> str | None:
  """The first fault in {"settings": ...} of counts, or of content of these modalities, in words;
  None for none."""
  return next(_field_faults(CHOSEN, chosen, modalities), None)


def find_fault(form: Form, header: Mapping[str, Any], described: Described) -> str | None:
  """The first difference from the form in a header, or in names, types and shapes of tensors, in
  words; None for none."""
  return next(_faults(form, header, described), None)


def find_wrong_values(
  form: Form,
  header: Mapping[str, Any],
  described: Described,
  tensors: Mapping[str, np.ndarray],
) -> str | None:
  """The first of the tensors that holds what it may not, in words; None for none. tensors: some of
  those described, in which `find_fault` found none."""
  sizes = _sizes(form, header, described)
  for name, modality, rule in _declared(form, described):
    if name not in tensors:
      continue
    x = tensors[name]
    if rule.below:
      size = _size(sizes, rule.below, modality)
      low, high = x.min(), x.max()
      if low < 0 or high >= size:
        return f"{name} holds {low if low < 0 else high}, expected ids from 0 to {size - 1}"
    elif not rule.values.accepts(x):
      return f"{name} holds {x.min():g} to {x.max():g}, expected {rule.values.text}"
  return None


def _faults(form: Form, header: Mapping[str, Any], described: Described) -> Iterator[str]:
  modalities = sorted(_modalities(form, described))
  for fault in _field_faults(form.fields, header, modalities, form.optional):
    yield f"the header has {fault}"
  yield from _name_faults(form, described, modalities)
  sizes = _sizes(form, header, described)
  for name, modality, rule in _declared(form, described):
    dtype, shape = described[name]
    expected = [_size(sizes, letter, modality) for letter in rule.axes]
    if dtype != rule.dtype or list(shape) != expected or 0 in shape:
      axes = ", ".join(
        letter if letter.isdigit() else f"{letter} = {size or 'at least 1'}"
        for letter, size in zip(rule.axes, expected, strict=True)
      )
      yield f"{name} is {dtype} {list(shape)}, expected {rule.dtype} [{axes}]"


def _field_faults(
  fields: Mapping[str, Rule],
  values: Mapping[str, Any],
  modalities: Sequence[str],
  optional: Mapping[str, Rule] = MappingProxyType({}),
) -> Iterator[str]:
  for pattern, rule in [*fields.items(), *optional.items()]:
    for name in _names(pattern, modalities):
      value = _value(values, name)
      if value is MISSING and pattern not in optional:
        yield f"no {name}, expected {rule.text}"
      elif value is not MISSING and not rule.accepts(value):
        yield f"{name}={_short(value)}, expected {rule.text}"


def _name_faults(form: Form, described: Described, modalities: list[str]) -> Iterator[str]:
  """Tensors that are missing, and those that the form does not have."""
  known = set()
  for group in form.groups:
    names = [name for pattern in group.tensors for name in _names(pattern, modalities or ["*"])]
    known.update(names)
    missing = [name for name in names if name not in described]
    if missing and not (group.optional and len(missing) == len(names)):
      yield f"of an earlier version, or incomplete: it holds no {missing[0]}"
  for name, (dtype, _) in described.items():
    if name not in known and not name.startswith(MODEL):
      yield f"it holds {name}, which is not a part of it"
    if name not in known and dtype != "float32":
      yield f"{name} is {dtype}, expected float32"


def _names(pattern: str, modalities: Sequence[str]) -> list[str]:
  return [pattern.replace("*", m) for m in modalities] if "*" in pattern else [pattern]


def _match(pattern: str, name: str) -> str | None:
  """The modality that `*` stands for, "" where the pattern has none; None for another name."""
  if "*" not in pattern:
    return "" if name == pattern else None
  found = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\w+)"), name)
  return found and found[1]


def _declared(form: Form, described: Described) -> Iterator[tuple[str, str, Tensor]]:
  """Name, modality and rule of every tensor that is there and in the form, in the form's order."""
  for group in form.groups:
    for pattern, rule in group.tensors.items():
      for name in described:
        if (modality := _match(pattern, name)) is not None:
          yield name, modality, rule


def _modalities(form: Form, described: Described) -> set[str]:
  return {modality for _, modality, _ in _declared(form, described) if modality}


def _sizes(form: Form, header: Mapping[str, Any], described: Described) -> Sizes:
  """The size of every letter, from the first tensor that has it; of rows, from the header."""
  sizes = {(form.rows, ""): header["num_items"] + (form.rows == "I")}
  for name, modality, rule in _declared(form, described):
    for letter, size in zip(rule.axes, described[name][1], strict=False):
      sizes.setdefault(_key(letter, modality), size)
  return sizes


def _size(sizes: Sizes, letter: str, modality: str) -> int:
  return int(letter) if letter.isdigit() else sizes.get(_key(letter, modality), 0)


def _key(letter: str, modality: str) -> tuple[str, str]:
  return letter, modality if letter in OF_A_MODALITY else ""


def _value(header: Mapping[str, Any], name: str) -> Any:
  """The field of the header, MISSING where there is none."""
  section, _, key = name.partition(".")
  value = header.get(section, MISSING)
  if key and value is not MISSING:
    return value.get(key, MISSING) if isinstance(value, dict) else MISSING
  return value


def _short(value: Any, most: int = 60) -> str:
  text = repr(value)
  return text if len(text) <= most else text[:most] + "..."
