"""New items through a trained workdir: codes, recommendations, the commands, mistakes."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
from commands import refused, run

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.serving.answer import print_recommendations
from mmesid_jax.serving.options import Options
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import new_item_codes

STAGE = "semantic_ids"


def vectors(workdir) -> dict[str, np.ndarray]:
  """Those that training saw, without padding."""
  collaborative, _ = read_artifact(workdir / "collaborative.safetensors", "collaborative")
  text = np.load(workdir / "synthetic" / "text.npy", allow_pickle=False)
  return {"collaborative": collaborative["items"][1:], "text": text[1:]}


def encoded(workdir, sources):
  return new_item_codes.encode_new_items(workdir, read_config(workdir), sources)


def test_items_of_training_get_their_codes_again(trained, tmp_path):
  """From the stage's artifact and the configuration alone."""
  for name in ("config.json", f"{STAGE}.safetensors"):
    shutil.copy(trained / name, tmp_path)
  artifact, header = read_artifact(trained / f"{STAGE}.safetensors", STAGE)
  new = encoded(tmp_path, vectors(trained))
  assert new.given == ("collaborative", "text") and new.quantizer == header["fingerprint"]
  for m in new.given:
    np.testing.assert_array_equal(new.codes[m], artifact[f"codes.{m}"][1:])
  assert len(np.unique(artifact["codes.text"][1:], axis=0)) > 3  # or this would show little


def test_what_is_not_known_is_the_mean_and_has_the_code_nearest_to_it(trained):
  new, (artifact, _) = (
    encoded(trained, {"text": vectors(trained)["text"][:3]}),
    read_artifact(trained / f"{STAGE}.safetensors", STAGE),
  )
  mean_V = np.float64(vectors(trained)["collaborative"]).mean(0)
  np.testing.assert_allclose(
    new.rows["collaborative"], np.tile(mean_V, (3, 1)), rtol=1e-5, atol=1e-6
  )
  part = "model.by_modality.collaborative."
  z = (mean_V - artifact[f"{part}mean_V"]) / artifact[f"{part}scale"]  # what is left of rounding
  layers = [k for k in artifact if k.startswith(f"{part}encoder") and "kernel" in k]
  for n in range(len(layers)):
    layer = f"{part}encoder.layers.{n}."
    z = z @ np.float64(artifact[f"{layer}kernel"]) + artifact[f"{layer}bias"]
    z = np.maximum(z, 0) if n + 1 < len(layers) else z
  for level, book_CD in enumerate(np.float64(artifact["codebooks.collaborative"])):
    nearest = ((z - book_CD) ** 2).sum(1).argmin()
    assert (new.codes["collaborative"][:, level] == nearest).all()
    z = z - book_CD[nearest]


def test_new_items_are_recommended_and_read_and_the_others_stay(trained, tmp_path):
  text = vectors(trained)["text"]
  new_item_codes.write_new_items(
    tmp_path / "new.safetensors", encoded(trained, {"text": text[[4, 6]]})
  )
  model, plain = (Recommender.load(trained) for _ in range(2))
  assert model.add_items(tmp_path / "new.safetensors", titles=["a", "b"]) == range(41, 43)
  assert plain.add_items({"text": text[[4, 6]]}) == range(41, 43)  # the same from rows
  histories = [[1, 2, 3], [], [41, 7]]
  before = Recommender.load(trained).recommend([[1, 2, 3], []], 40, repeat=True)
  answers = model.recommend(histories, 42, repeat=True)
  for answer, same, old in zip(
    answers, plain.recommend(histories, 42, repeat=True), [*before, None], strict=True
  ):
    scores = {r.item: r.score for r in answer}
    assert scores == {r.item: r.score for r in same} and scores.keys() == set(range(1, 43))
    for r in old or ():
      assert scores[r.item] == pytest.approx(r.score, rel=1e-4, abs=1e-5)
  for r in answers[0]:
    if r.item > 40:
      alone = {"identity": 0, "collaborative": 0, "text": r.score}
      assert r.parts == pytest.approx(alone, rel=1e-5, abs=1e-6)
      assert r.title == "ab"[r.item - 41]
    else:
      assert r.title == model.titles[r.item] and r.parts["identity"] != 0
  assert model.add_items({"text": text[:1]}) == range(43, 44)


def test_what_is_offered_is_recommended_alone_with_the_same_scores(trained):
  model = Recommender.load(trained)
  added = model.add_items({"text": vectors(trained)["text"][[4, 6, 8]]})
  (everything,) = model.recommend([[1, 2, 3]], 43, repeat=True)
  for offered in (added, range(42, 43), range(1, 41)):
    model.restrict_to(offered)
    (answer,) = model.recommend([[1, 2, 3]], len(offered), repeat=True)
    expected = [r for r in everything if r.item in offered]
    assert [r.item for r in answer] == [r.item for r in expected]
    scores = [[r.score for r in items] for items in (answer, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=f"expected a number from 1 to {len(offered)}"):
      model.recommend([[1]], len(offered) + 1)
  for wrong in (range(3, 3), range(0, 4), range(40, 45), range(1, 9, 2)):
    with pytest.raises(UserError, match="expected consecutive items from 1 to 43"):
      model.restrict_to(wrong)
  more = model.add_items({"text": vectors(trained)["text"][:1]})  # all are offered again
  assert more[0] in {r.item for r in model.recommend([[1]], 44, repeat=True)[0]}


def test_rows_are_whitened_as_in_training(trained):
  """A copy of an item stands in the model's table as the item does."""
  config = read_config(trained)
  model = new_item_codes.recommender_stage.load_recommender(trained, config)
  given = {m: x[[4, 6]] for m, x in vectors(trained).items()}
  extended = new_item_codes.append_new_items(model, trained, config, given)
  for m in given:
    table = np.asarray(extended.items.feature_IV[m][...])
    assert table.shape == (43, 8)
    np.testing.assert_allclose(table[[41, 42]], table[[5, 7]], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(extended.items.code_IL[m][41], extended.items.code_IL[m][5])


def test_without_codes_and_whitening_features_suffice(workdir, tiny):
  changes = {"codes": "none", "whiten": 0, "encoder": "mlp", "epochs": 1}
  config = tiny(changes={f"recommender.{k}": v for k, v in changes.items()})
  pipeline.run_pipeline(config, workdir, overwrite=True)
  text = vectors(workdir)["text"]
  (workdir / f"{STAGE}.safetensors").unlink()
  model = Recommender.load(workdir)
  assert model.add_items({"text": text[:2]}) == range(41, 43)
  (answer,) = model.recommend([[1, 2]], 40)
  (new, *_) = (r for r in answer if r.item > 40)
  # the score is a float32 sum of its own
  alone = {"identity": 0, "collaborative": 0, "text": new.score}
  assert new.parts == pytest.approx(alone, rel=1e-5, abs=1e-6)
  with pytest.raises(UserError, match="features of text: rows are 5 wide; expected 64"):
    model.add_items({"text": text[:2, :5]})


BAD = {
  "unknown": ({"audio": np.ones((2, 3))}, "audio: no such modality; the model reads"),
  "width": ({"text": np.ones((2, 3))}, "features of text: rows are 3 wide; expected 64"),
  "rows": (
    {"text": np.ones((2, 64)), "collaborative": np.ones((3, 8))},
    "2 new items by text, 3 by collaborative",
  ),
  "nothing": ({}, "no features of new items"),
  "empty": ({"text": np.ones((0, 64))}, r"features of text: a table of shape \[0, 64\]"),
  "nan": ({"text": np.full((2, 64), np.nan)}, "features of text: row 0 holds NaN"),
  "text": ({"text": [["a"] * 64]}, "features of text: holds values of type"),
}


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_do_not_fit_are_refused(trained, kind):
  sources, says = BAD[kind]
  for refuse in (
    lambda: encoded(trained, sources),
    lambda: Recommender.load(trained).add_items(sources),
  ):
    with pytest.raises(UserError, match=says):
      refuse()


def test_files_that_do_not_fit_are_refused(workdir, tmp_path):
  model, file = Recommender.load(workdir), tmp_path / "new.safetensors"
  with pytest.raises(UserError, match=r"new.safetensors: no such file; run .*semantic_ids encode"):
    model.add_items(file)
  with pytest.raises(UserError, match=r"not an artifact of the stage new_items .*encode"):
    model.add_items(workdir / "recommender.safetensors")
  new = encoded(workdir, {"text": vectors(workdir)["text"][:2]})
  new_item_codes.write_new_items(file, dataclasses.replace(new, quantizer="other"))
  with pytest.raises(UserError, match=r"new.safetensors: codes of another quantizer"):
    model.add_items(file)
  new_item_codes.write_new_items(
    file, dataclasses.replace(new, codes={m: x + 4 for m, x in new.codes.items()})
  )
  with pytest.raises(UserError, match=r"new.safetensors: do not fit .*expected 0 to 3"):
    model.add_items(file)
  new_item_codes.write_new_items(file, new)
  with pytest.raises(UserError, match="1 titles of 2 new items"):
    model.add_items(file, titles=["a"])
  assert model.num_items == 40
  without(workdir / "recommender.safetensors", "whitening.")
  without(workdir / f"{STAGE}.safetensors", "means.")
  with pytest.raises(UserError, match="how its features were whitened; train it again"):
    model.add_items(file)
  with pytest.raises(UserError, match="no means of the items' vectors; train the stage"):
    encoded(workdir, {"text": vectors(workdir)["text"]})


def without(path: pathlib.Path, prefix: str) -> None:
  """An artifact as an earlier version wrote it."""
  tensors = safetensors.numpy.load_file(path)
  with safetensors.safe_open(path, framework="numpy") as file:
    metadata = file.metadata()
  kept = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
  safetensors.numpy.save_file(kept, path, metadata=metadata)


@pytest.mark.parametrize(
  ("features", "says"),
  [
    (["text"], "--features=text: expected MODALITY=FILE"),
    (["text="], "--features=text=: expected MODALITY=FILE"),
    (["text=a.npy", "text=b.npy"], "--features=text=b.npy: text is given twice"),
    (["text=nowhere.npy"], "nowhere.npy: no such file"),
  ],
)
def test_features_are_given_once_by_modality(trained, tmp_path, features, says):
  with pytest.raises(UserError, match=says):
    new_item_codes.encode_and_write(trained, features, tmp_path / "new.safetensors")


def test_new_items_are_named_in_the_list(trained, tmp_path, capsys):
  new_item_codes.write_new_items(
    tmp_path / "x.safetensors", encoded(trained, {"text": vectors(trained)["text"]})
  )
  options = Options(top_k=78, new_items=str(tmp_path / "x.safetensors"))
  print_recommendations(trained, "history", "1 41", options)
  out = capsys.readouterr().out
  assert "had: 1 " in out and "; 41 (new item 1)" in out and " 80 (new item 40)  score" in out


def test_the_commands(trained, tmp_path):
  new, bad, out = (tmp_path / name for name in ("text.npy", "bad.npy", "new.safetensors"))
  np.save(new, vectors(trained)["text"][[4, 6]])
  np.save(bad, np.ones((2, 3)))
  encode = ("semantic_ids", "encode", f"--workdir={trained}", f"--output={out}")
  assert f"{bad}: rows are 3 wide; expected 64" in refused(*encode, f"--features=text={bad}")
  assert not out.exists()
  status, text, err = run(*encode, f"--features=text={new}")
  assert status == 0, err
  assert "2 new items" in text and "not given" in text
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npy", "new.safetensors", "text.npy"]
  found, header = read_artifact(out, "new_items")
  assert found["codes.text"].shape == (2, 2) and found["codes.text"].dtype == np.int32
  assert found["features.text"].shape == (2, 64) and header["given"] == ["text"]
  histories = tmp_path / "histories.txt"
  histories.write_text("1 2 41\n")
  recommend = ("recommend", f"--workdir={trained}", f"--histories={histories}", "--top_k=39")
  status, text, err = run(*recommend, f"--new_items={out}")
  assert status == 0, err
  items = [r["item"] for r in json.loads(text)["items"]]
  assert len(items) == 39 and 42 in items and 41 not in items
  status, text, err = run(*recommend[:-1], f"--new_items={out}", "--only_new", "--top_k=2")
  assert status == 0, err
  assert [r["item"] for r in json.loads(text)["items"]] == [42]
  assert "--new_items=FILE" in refused(*recommend, "--only_new")
