"""Ranking, generating, or both: what is trained is evaluated, served, and nothing else is."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.config.checks import check_values
from mmesid_jax.config.schema import TRAINED
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.quantize.item_ids import number_shared_codes
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.recommender_stage import RECOMMENDER, describe_ids
from mmesid_jax.stages.workdir import reopen_workdir

RANKED, GENERATED = "MME-SID", "MME-SID, generated"


@pytest.fixture(scope="module")
def run(tiny, trained, tmp_path_factory):
  """run(head): a workdir that is trained with the head, beside earlier stages that all share."""
  made = {}

  def train(head: str) -> pathlib.Path:
    if head not in made:
      path = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / head)
      (path / "recommender.safetensors").unlink()
      keys = {"stages": TRAINED, "recommender.head": head, "recommender.epochs": 6}
      pipeline.run_pipeline(tiny(changes=keys), path, overwrite=True)
      made[head] = path
    return made[head]

  return train


def ndcg(path: pathlib.Path, part: str) -> dict[str, float]:
  models = json.loads((path / "evaluation.json").read_text())["models"]
  return {name: found[part]["nDCG@10"]["mean"] for name, found in models.items()}


@pytest.mark.parametrize("head, rows", [("generate", [RANKED]), ("both", [RANKED, GENERATED])])
def test_a_head_learns_and_has_its_row(run, head, rows):
  """Six epochs on 60 users are enough to know more than what is bought most."""
  found = ndcg(run(head), "unmasked")
  assert [name for name in found if name.startswith("MME-SID")] == rows
  assert all(found[row] > 1.2 * found["popularity"] for row in rows), found


@pytest.mark.parametrize("head", ["generate", "both"])
def test_what_is_generated_is_what_was_evaluated(run, head):
  """From outside: the histories before the test items, and the places of these in the lists."""
  path = run(head)
  workdir = reopen_workdir(path)
  dataset, targets = workdir.dataset, workdir.dataset.split.targets["test"]
  users = [user for user, target in enumerate(targets) if target >= 0]
  sequences = [dataset.sequence(user) for user in users]
  histories = [s[: targets[user]] for user, s in zip(users, sequences, strict=True)]
  served = Recommender.load(path, model="generated")
  places = []
  for answer, user, sequence in zip(
    served.recommend(histories, top_k=10), users, sequences, strict=True
  ):
    items = [r.item for r in answer]
    assert all([*r.parts] == ["generated"] and r.parts["generated"] == r.score for r in answer)
    assert [r.score for r in answer] == sorted((r.score for r in answer), reverse=True)
    target = sequence[targets[user]]
    places.append(1 / np.log2(2 + items.index(target)) if target in items else 0)
  row = RANKED if head == "generate" else GENERATED
  assert np.mean(places) == pytest.approx(ndcg(path, "masked")[row], abs=1e-6)


def test_only_what_was_trained_is_served(run, trained):
  assert Recommender.load(run("generate")).recommend([[1, 2]], top_k=2)[0]
  for head, model in (("generate", "network"), ("generate", "blend")):
    with pytest.raises(UserError, match="head=generate, without .*; expected generated"):
      Recommender.load(run(head), model=model)
  with pytest.raises(UserError, match="recommender.head=rank, without 'generated'.*head=both"):
    Recommender.load(trained, model="generated")
  parts = [Recommender.load(run("both"), model=model) for model in ("network", "generated")]
  first, second = (part.recommend([[1, 2]], top_k=1)[0][0] for part in parts)
  assert len(first.parts) > 1 and [*second.parts] == ["generated"]


def test_new_items_are_ranked_and_not_generated(run):
  text = np.load(run("both") / "synthetic" / "text.npy")[[4]]
  assert Recommender.load(run("both"), model="network").add_items({"text": text})
  with pytest.raises(UserError, match="new items have no place among the semantic IDs"):
    Recommender.load(run("both"), model="generated").add_items({"text": text})


def test_ids_of_other_codes_are_refused(run, tmp_path):
  path = shutil.copytree(run("both"), tmp_path / "copy")
  tensors, header = read_artifact(path / "recommender.safetensors", "recommender")
  tensors["model.generate.code_IK"] = tensors["model.generate.code_IK"][::-1].copy()
  write_artifact(path / "recommender.safetensors", tensors, header)
  with pytest.raises(UserError, match="code_IK does not number the codes in model.items.code_IL"):
    RECOMMENDER.load_model(reopen_workdir(path))


@pytest.mark.parametrize(
  "codes, line",
  [
    ([[0, 0], [0, 1], [1, 0]], "semantic IDs of text, 2 codes each, none of them shared"),
    (
      [[0, 0], [0, 1], [0, 0], [1, 1], [0, 0]],
      "semantic IDs of text, 3 codes each, the last a number for the 3 of 5 items (60.0%) that "
      "share the others, at most 3 of them",
    ),
  ],
)
def test_the_share_of_items_that_need_a_number_is_told(codes, line):
  ids = number_shared_codes(np.array([[0, 0], *codes]), 2)
  assert describe_ids(ids, "text") == line


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"codes": "none"}, "head=both: generates codes, but recommender.codes=none"),
    ({"generate.modality": "visual"}, "modality=visual: expected one of collaborative, text"),
    ({"row_length": 2}, "must be above prompt.response=0 and the 2 codes of an ID"),
    ({"head": "generate"}, "head=generate: gives no scores of all items, which the stage blend"),
  ],
)
def test_what_cannot_be_generated_is_refused(tiny, changes, message):
  keys = {f"recommender.{key}": value for key, value in {"head": "both", **changes}.items()}
  with pytest.raises(UserError, match=message):
    check_values(tiny(changes={**keys, "stages": (*TRAINED, "blend")}))
