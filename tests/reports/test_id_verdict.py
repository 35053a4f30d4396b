"""The verdict on figures whose answer is known."""

import copy

import pytest

from mmesid_jax.reports.id_page import semantic_id_page
from mmesid_jax.reports.id_verdict import COLLISIONS, TAU, USED, find_verdict, verdict_text

LEVEL = {"usage": 1.0, "dead": 0, "perplexity": 200.0, "gini": 0.1}
GOOD = {
  "num_items": 1_000,
  "health": {
    **{
      m: {
        "levels": [dict(LEVEL), dict(LEVEL)],
        "entropy": [7.5, 9.9],
        "collision_rate": 0.02,
        "largest_group": 3,
      }
      for m in ("collaborative", "text")
    },
    "joint": {"collision_rate": 0.0, "largest_group": 1},
  },
  "tau": {
    "collaborative": {"quantized": {"mean": 0.57, "users": 9, "ties": 0.0}},
    "text": {"quantized": {"mean": 0.53, "users": 9, "ties": 0.0}},
  },
  "inputs": {"before": {}},
  "notes": [],
}


def answers(figures):
  return [finding.answer for finding in find_verdict(figures)]


def changed(change):
  figures = copy.deepcopy(GOOD)
  change(figures)
  return figures


def test_good_codes_have_three_times_yes():
  codes, ids, distances = find_verdict(GOOD)
  assert answers(GOOD) == ["yes"] * 3
  assert codes.text == "Every level uses at least 100.0% of its codes."
  assert ids.text == "1,000 items have 1,000 different IDs."
  assert "0.53 for text" in distances.text and "After" not in distances.text


@pytest.mark.parametrize(
  ("usage", "answer"), [(USED[0], "yes"), (USED[0] - 0.01, "partly"), (USED[1] - 0.01, "no")]
)
def test_the_worst_level_decides_whether_codes_are_in_use(usage, answer):
  figures = changed(lambda f: f["health"]["text"]["levels"][1].update(usage=usage))
  assert answers(figures) == [answer, "yes", "yes"]
  text = find_verdict(figures)[0].text
  assert (answer == "yes") or f"Level 2 of text uses only {usage:.1%}" in text
  assert ("collapsed" in text) == (answer == "no")


@pytest.mark.parametrize(
  ("rate", "answer"),
  [(COLLISIONS[0], "yes"), (COLLISIONS[0] + 0.01, "partly"), (COLLISIONS[1] + 0.01, "no")],
)
def test_ids_are_those_of_all_modalities_together(rate, answer):
  joint = {"collision_rate": rate, "largest_group": 4}
  figures = changed(lambda f: f["health"].update(joint=joint))
  assert answers(figures) == ["yes", answer, "yes"]
  distinct = round(1_000 * (1 - rate))
  assert find_verdict(figures)[1].text == (
    f"1,000 items have {distinct} different IDs. The most shared ID belongs to 4 items."
  )


@pytest.mark.parametrize(
  ("tau", "answer"), [(TAU[0], "yes"), (TAU[0] - 0.01, "partly"), (TAU[1] - 0.01, "no")]
)
def test_the_worst_modality_decides_whether_distances_survive(tau, answer):
  def change(figures):
    figures["tau"]["text"] |= {"quantized": {"mean": tau}, "after": {"mean": 0.21}}

  distances = find_verdict(changed(change))[2]
  assert distances.answer == answer
  assert f"{tau:.2f} for text" in distances.text
  assert distances.text.endswith("After training the recommender it is 0.21.")


def test_without_a_tau_nothing_is_said_of_distances():
  figures = changed(lambda f: f.update(tau={"collaborative": {}, "text": {}}))
  assert answers(figures) == ["yes", "yes"]


def test_the_page_begins_with_the_verdict_and_its_thresholds():
  page = semantic_id_page("runs/a", GOOD, [])
  assert page.index("Verdict") < page.index("Codebooks")
  for finding in find_verdict(GOOD):
    assert finding.question in page and finding.text.replace("'", "&#x27;") in page
  assert f"{USED[0]:.0%} and {USED[1]:.0%}" in page and f"{TAU[0]} and {TAU[1]}" in page


def test_the_terminal_gets_a_line_for_every_question():
  lines = verdict_text(find_verdict(GOOD)).splitlines()
  assert lines[0] == "Are the codes in use? Yes. Every level uses at least 100.0% of its codes."
  assert len(lines) == 3
