"""Ablations at toy size: what is trained once, what is skipped, what the small files hold."""

import contextlib
import io
import json
import pathlib
import runpy
import shutil
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.named_configs import config_file, load_config
from mmesid_jax.config.schema import flatten
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import Interrupted, Stop, UserError
from mmesid_jax.experiments import ablations
from mmesid_jax.reports import test_ranks
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.registry import STAGES
from mmesid_jax.stages.workdir import reopen_workdir

ROOT = pathlib.Path(__file__).parents[2]
VARIANTS = {
  "base": {},
  "broken": {"features": {"visual": "missing.npy"}},
  "no_codes": {"recommender": {"codes": "none"}},
}
SUMS = {
  "with_sasrec": ("recommender", "collaborative"),
  "two_sasrecs": ("collaborative", "next collaborative"),
}
TRAINED = {"collaborative": 2, "semantic_ids": 2, "recommender": 4}  # two seeds, two variants


@contextlib.contextmanager
def counted():
  """How often each stage was trained."""
  counts = dict.fromkeys(TRAINED, 0)

  def counting(stage, train):
    def wrapped(workdir):
      counts[stage] += 1
      train(workdir)

    return wrapped

  with pytest.MonkeyPatch.context() as patch:
    for name, stage in STAGES.items():
      patch.setattr(stage, "train", counting(name, stage.train))
    yield counts


@pytest.fixture(scope="module")
def config(tiny):
  quick = {f"{stage}.epochs": 1 for stage in TRAINED} | {"recommender.whiten": 4}
  base = tiny(changes=quick)
  return ConfigDict({"base": base, "seeds": (0, 1), "variants": VARIANTS, "sums": SUMS})


def ablate(config, folder: pathlib.Path, variants=None, seeds=None) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    ablations.run_ablations(config, folder, folder / "results", variants=variants, seeds=seeds)
  return out.getvalue()


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
  """Everything run once; one variant fails."""
  path = tmp_path_factory.mktemp("ablations")
  with counted() as counts, pytest.raises(Stop) as caught:
    ablate(config, path)
  return types.SimpleNamespace(path=path, results=path / "results", counts=counts, stop=caught)


def result(done, name, seed=0) -> dict:
  return json.loads((done.results / f"{name}-seed{seed}.json").read_text())


@pytest.mark.slow
def test_what_two_variants_share_is_trained_once(done):
  assert done.counts == TRAINED
  ours, base = (done.path / f"{name}-seed0" for name in ("no_codes", "base"))
  for stage, same in (("collaborative", True), ("semantic_ids", True), ("recommender", False)):
    files = [path / f"{stage}.safetensors" for path in (ours, base)]
    assert (files[0].read_bytes() == files[1].read_bytes()) == same
  seeds = [done.path / f"base-seed{seed}" / "collaborative.safetensors" for seed in (0, 1)]
  assert seeds[0].read_bytes() != seeds[1].read_bytes()


def test_a_variant_that_fails_stops_no_other_and_is_told_at_the_end(done):
  message = str(done.stop.value)
  assert "2 of the runs failed" in message and done.stop.value.status == 1
  assert "broken-seed0" in message and "broken-seed1" in message and "missing.npy" in message
  rows = ["base", "no_codes", "popularity", "sasrec", "two_sasrecs", "with_sasrec"]
  names = {f"{row}-seed{seed}.json" for row in rows for seed in (0, 1)}
  assert {file.name for file in done.results.iterdir()} == names | {"table.md"}


def test_a_result_is_small_and_holds_what_the_evaluation_found(done):
  assert all(file.stat().st_size < 4096 for file in done.results.glob("*.json"))
  found, where = result(done, "base"), done.path / "base-seed0"
  assert found["changes"] == {} == found["to_base"] and found["seconds"] > 0
  assert found["users"] == 60 and {"jax", "numpy"} <= found["versions"].keys()
  whole = {
    s: json.loads((where / test_ranks.evaluation_file(s)).read_text()) for s in ("test", "valid")
  }
  for row, model in (("base", "MME-SID"), ("sasrec", "SASRec"), ("popularity", "popularity")):
    for split in whole:
      for protocol, metrics in whole[split]["models"][model].items():
        ours = result(done, row)[split][protocol]
        assert list(ours) == ["HR@5", "nDCG@5", "HR@10", "nDCG@10"]
        for metric, values in ours.items():
          assert values == pytest.approx(list(metrics[metric].values()), abs=1e-5)
  levels = found["codes"]["text"]["usage"]
  assert len(levels) == 2 and all(0 < usage <= 1 for usage in levels)
  assert found["codes"]["joint"]["collisions"] <= found["codes"]["text"]["collisions"]
  assert result(done, "no_codes")["codes"] is None


@pytest.mark.parametrize("row", ["no_codes", "sasrec", "with_sasrec"])
def test_the_difference_is_to_base_of_the_same_seed(done, row):
  for seed in (0, 1):
    gain = result(done, row, seed)["to_base"]["unmasked HR@10"]
    means = [result(done, x, seed)["test"]["unmasked"]["HR@10"][0] for x in (row, "base")]
    assert gain["mean"] == pytest.approx(means[0] - means[1], abs=2e-5)
    assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]


def test_another_model_of_the_same_runs_is_compared_without_training(done, config, tmp_path):
  other = ConfigDict({**config, "model": "SASRec", "sums": {}})
  with counted() as counts, contextlib.redirect_stdout(io.StringIO()):
    ablations.run_ablations(other, done.path, tmp_path, variants=["no_codes"], seeds=["0"])
  assert not any(counts.values())
  found = {x: json.loads((tmp_path / f"{x}-seed0.json").read_text()) for x in ("base", "no_codes")}
  assert found["base"]["test"] == result(done, "sasrec")["test"] != result(done, "base")["test"]
  assert found["no_codes"]["to_base"]["masked nDCG@5"]["mean"] == 0
  with pytest.raises(UserError, match="base-seed0.json: of another experiment"):
    ablations.run_ablations(other, done.path, done.results, variants=[], seeds=["0"])
  other.model = "MME-SID + evidence"
  with pytest.raises(UserError, match="model=MME-SID .*: expected one that base trains: SASRec, M"):
    ablations.run_ablations(other, done.path, tmp_path, variants=[], seeds=["0"])


@pytest.mark.parametrize("name", ["ablations", "options", "pretraining"])
def test_every_variant_of_a_shipped_configuration_can_be_made(name, tmp_path):
  plan = ablations.AblationPlan(load_config(config_file(name)), tmp_path, tmp_path)
  assert len(plan.config.variants) > 3
  for variant in plan.config.variants:
    assert plan.config_of(variant, 1).seed == 1


def alone(model, layout, sequence) -> np.ndarray:
  """log-probabilities of items 1..I behind a history, float64 [1 + I], of one user alone."""
  batch = next(iter(batch_sequences([sequence], layout, [len(sequence) - 1])))
  q = int(np.flatnonzero(batch.weight_Q)[0])
  score_I = np.float64(model.scores(model.hidden(batch))[q])
  score_I[0] = -np.inf
  return score_I - np.log(np.exp(score_I).sum())


def test_a_sum_ranks_by_the_sum_of_log_probabilities(done, config):
  here, there = (reopen_workdir(done.path / f"base-seed{seed}") for seed in (0, 1))
  c, r = config.base.collaborative, config.base.recommender
  plain = Layout(1, c.row_length, 1)
  mine = STAGES["collaborative"].load_model(here), plain
  theirs = STAGES["collaborative"].load_model(there), plain
  full = recommender_stage.load_recommender(here.path, here.config), Layout(1, r.row_length, 1)
  for name, parts in (("with_sasrec", (full, mine)), ("two_sasrecs", (mine, theirs))):
    ranks = test_ranks.read_ranks(done.path / f"{name}-seed0", "test", name)
    for user in range(0, 60, 12):
      sequence = here.dataset.sequence(user)[-c.row_length :]
      score_I = sum(alone(*part, sequence) for part in parts)
      ahead = {int(i) for i in np.flatnonzero(score_I > score_I[sequence[-1]])}
      assert ranks["unmasked"][user] == 1 + len(ahead)
      history = set(map(int, here.dataset.sequence(user)[:-1]))
      if int(sequence[-1]) not in history:
        assert ranks["masked"][user] == 1 + len(ahead - history)


def test_a_second_run_tries_only_what_failed(done, config):
  before = {file: file.stat().st_mtime_ns for file in done.results.glob("*.json")}
  with counted() as counts, pytest.raises(Stop, match="broken-seed0"):
    ablate(config, done.path)
  assert not any(counts.values())
  assert {file: file.stat().st_mtime_ns for file in done.results.glob("*.json")} == before


def test_an_interrupted_run_goes_on_and_what_was_finished_stays(done, config, tmp_path):
  path = pathlib.Path(shutil.copytree(done.path, tmp_path / "copy"))
  (path / "results" / "no_codes-seed1.json").unlink()
  (path / "no_codes-seed1" / "recommender.safetensors").unlink()

  def stopped(workdir):
    raise Interrupted("SIGTERM at step 1 of 5")

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(STAGES["recommender"], "train", stopped)
    ablate(config, path, variants=["no_codes"])
  assert not (path / "results" / "no_codes-seed1.json").exists()
  with counted() as counts:
    ablate(config, path, variants=["no_codes"])
  assert counts == {"collaborative": 0, "semantic_ids": 0, "recommender": 1}
  again, before = (
    json.loads((p / "results" / "no_codes-seed1.json").read_text()) for p in (path, done.path)
  )
  assert again["seconds"] > before["seconds"]
  assert again["test"] == before["test"] and again["to_base"] == before["to_base"]


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"seeds": ()}, "--config.seeds=.*: expected whole numbers"),
    ({"seeds": 3}, "--config.seeds=3: expected whole numbers"),
    ({"seeds": (0, "a")}, "--config.seeds=.*: expected whole numbers"),
    ({"variants": {"base": {}, "x": 3}}, "--config.variants.x=3: expected a section"),
    ({"sums": {"x": "recommender"}}, "--config.sums.x='recommender': expected a tuple"),
  ],
)
def test_values_of_another_kind_are_refused(tmp_path, changes, told):
  parts = {"base": {}, "seeds": (0,), "variants": {"base": {}}, "sums": {}} | changes
  with pytest.raises(UserError, match=told):
    ablations.print_table(ConfigDict(parts), tmp_path)
  with pytest.raises(UserError, match=told):
    options = {"variants": None, "seeds": None}
    ablations.run_ablations(ConfigDict(parts), tmp_path, tmp_path, **options)


def test_a_table_that_would_be_written_over_is_refused_before_the_first_run(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(ablations.AblationPlan, "train", lambda *_: pytest.fail("it trains"))
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "table.md").write_text("mine")
  with pytest.raises(UserError, match="table.md: mmesid_jax.ablate did not write it"):
    ablate(config, tmp_path)
  with pytest.raises(UserError, match="--results=.*nowhere: holds no result of mmesid_jax.ablate"):
    ablations.print_table(config, tmp_path / "nowhere")
  assert not (tmp_path / "nowhere").exists()
  assert (tmp_path / "results" / "table.md").read_text() == "mine"


def test_the_table_needs_nothing_but_the_results(done, config, tmp_path, capsys):
  results = pathlib.Path(shutil.copytree(done.results, tmp_path / "results"))
  (results / "no_codes-seed1.json").unlink()
  ablations.print_table(config, results)
  out = capsys.readouterr().out
  assert (results / "table.md").read_text() in out
  assert "owed: seed 0: broken; seed 1: broken, no_codes." in out
  rows = [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
  half = len(rows) // 2
  names = ["popularity", "sasrec", "base", "no_codes", "two_sasrecs", "with_sasrec"]
  assert [row[0] for row in rows[2:half]] == [row[0] for row in rows[half + 2 :]] == names
  by_name = {row[0]: row for row in rows[half:]}  # unmasked
  found = [result(done, "sasrec", seed) for seed in (0, 1)]
  means = [r["test"]["unmasked"]["nDCG@5"][0] for r in found]
  gain = np.mean([r["to_base"]["unmasked nDCG@5"]["mean"] for r in found])
  cells = by_name["sasrec"]
  assert cells[1:3] == ["0, 1", f"{np.mean(means):.4f} ({means[0]:.4f}, {means[1]:.4f})"]
  assert cells[3].startswith(f"{gain:+.4f} [")
  assert by_name["base"][3] == "" and by_name["no_codes"][1] == "0"


def changed(config, **changes) -> ConfigDict:
  copy = ConfigDict(config.to_dict())
  copy.update(changes)
  return copy


@pytest.mark.parametrize(
  ("variants", "seeds", "changes", "says"),
  [
    (["no_cods"], None, {}, "--variants=no_cods: unknown; did you mean no_codes"),
    (None, ["7"], {}, "--seeds=7: unknown"),
    (
      None,
      None,
      {"variants": {"x": {"recommender": {"code": "none"}}}},
      "variant x: recommender.code: no such key; did you mean recommender.codes",
    ),
    (
      None,
      None,
      {"variants": {"x": {"recommender": {"whiten": -1}}}},
      "variant x: --config.base.recommender.whiten=-1",
    ),
    (None, None, {"variants": {"x": {"recommender": {"whiten": "1"}}}}, "variant x: "),
    (None, None, {"variants": {"base": {"seed": 3}}}, "one named base that changes nothing"),
    (None, None, {"sums": {"x": ("recommende",)}}, "--config.sums.x: 'recommende' is none of"),
    (
      ["no_codes"],
      None,
      {"variants": {"no_codes": {"recommender": {"whiten": 3}}}},
      "no_codes-seed0.json: of another experiment: recommender.whiten was 4, now 3",
    ),
    (
      None,
      None,
      {"base": {"recommender": {"rows": 8}}},
      "base-seed0.json: of another experiment: recommender.rows was 4, now 8",
    ),
  ],
)
def test_mistakes_are_one_line_before_anything_trains(done, config, variants, seeds, changes, says):
  with counted() as counts, pytest.raises(UserError) as caught:
    ablate(changed(config, **changes), done.path, variants=variants, seeds=seeds)
  assert says in str(caught.value) and not any(counts.values())


def test_a_link_in_the_place_of_a_run_is_not_followed(config, tmp_path, capsys):
  (tmp_path / "mine").mkdir()
  (tmp_path / "base-seed0").symlink_to("mine")
  with pytest.raises(Stop):
    ablate(config, tmp_path, variants=("base",), seeds=("0",))
  assert f"{tmp_path}/base-seed0: is a symbolic link to mine" in capsys.readouterr().err
  assert not any((tmp_path / "mine").iterdir())


def test_every_variant_of_the_config_file_changes_what_it_says():
  config = runpy.run_path(str(ROOT / "configs/ablations.py"))["get_config"]()
  beauty = runpy.run_path(str(ROOT / "configs/beauty.py"))["get_config"]()
  changes = {"recommender.fusion": "frequency"}
  assert flatten(config.base) == {**flatten(beauty), **changes}
  config.base.data.dir = "somewhere"
  plan = ablations.AblationPlan(config, pathlib.Path("w"), pathlib.Path("r"))
  plan.check([*config.variants], [*config.sums], [*config.seeds])
  base, seen = flatten(plan.config_of("base", 1)), set()
  assert base["seed"] == 1
  for name in config.variants:
    whole = plan.config_of(name, 1)
    check_values(whole)
    different = {k: v for k, v in flatten(whole).items() if v != base[k]}
    if "preset" in different:
      assert different.keys() >= {"recommender.encoder", "semantic_ids.quantizer.commitment"}
    else:
      absent = {} if config.base.features.visual else {"features.visual": ""}
      assert different == {k: v for k, v in plan.changes(name).items() if k not in absent}
    seen.add(json.dumps(different, sort_keys=True))
  assert len(seen) == len(config.variants)  # no two are the same
