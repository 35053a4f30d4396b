"""Checkpoints that are not what they should be: one line each, before any memory is taken."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import write_tiny_checkpoint
from flax import nnx

from mmesid_jax.errors import UserError
from mmesid_jax.hf.architecture import read_architecture
from mmesid_jax.hf.llama_weights import check_keys
from mmesid_jax.hf.safetensors_dir import INDEX, SINGLE, Checkpoint, write_checkpoint
from mmesid_jax.models.llama import Llama

UP = "model.layers.1.mlp.up_proj.weight"
BIAS = "model.layers.1.self_attn.q_proj.bias"


@pytest.fixture
def base(tmp_path):
  write_tiny_checkpoint(tmp_path / "base")
  return tmp_path / "base"


def rename(change):
  """Damage that gives every tensor another name."""

  def damage(base):
    tensors = safetensors.numpy.load_file(base / SINGLE)
    safetensors.numpy.save_file({change(k): x for k, x in tensors.items()}, base / SINGLE)

  return damage


def configure(**fields):
  """Damage that changes fields of config.json."""

  def damage(base):
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

  return damage


def opened(base):
  config = read_architecture(base)
  check_keys(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), Checkpoint(base))


def rewrite(base, change):
  tensors = safetensors.numpy.load_file(base / SINGLE)
  change(tensors)
  safetensors.numpy.save_file(tensors, base / SINGLE)


def shard(base, *, rename=lambda name: name):
  """The one file as two shards and an index."""
  tensors = safetensors.numpy.load_file(base / SINGLE)
  names = sorted(tensors)
  parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
  for file, keys in parts.items():
    safetensors.numpy.save_file({k: tensors[k] for k in keys}, base / file)
  (base / SINGLE).unlink()
  weight_map = {key: rename(file) for file, keys in parts.items() for key in keys}
  (base / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_whole_one_is_taken(base):
  opened(base)
  shard(base)
  opened(base)


def write_file(file):
  safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, file)


def test_tables_of_rotations_that_older_conversions_stored_are_skipped(base):
  """Llama 2 and older ones: in every layer, or once."""
  frequencies = np.ones(8, np.float32)
  names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
  rewrite(
    base, lambda t: t.update(dict.fromkeys([*names, "model.rotary_emb.inv_freq"], frequencies))
  )
  opened(base)


def test_a_head_may_be_there_or_be_the_embeddings(base):
  """It is not read, and an export takes it along."""
  opened(base)
  rewrite(base, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
  opened(base)
  configure(tie_word_embeddings=False)(base)
  opened(base)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\ud800", ".."])
def test_an_index_that_names_no_file_is_one_line(base, name):
  shard(base, rename=lambda file: name)
  with pytest.raises(UserError, match="no such file, but .*index.json names it"):
    Checkpoint(base)


def test_a_tensor_in_two_shards_is_read_where_the_index_says(base):
  expected = Checkpoint(base).read(UP)
  shard(base)
  name = json.loads((base / INDEX).read_text())["weight_map"][UP]
  other = ({"a.safetensors", "b.safetensors"} - {name}).pop()
  tensors = safetensors.numpy.load_file(base / other)
  safetensors.numpy.save_file(tensors | {UP: np.zeros_like(expected)}, base / other)
  np.testing.assert_array_equal(Checkpoint(base).read(UP), expected)


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda b: (b / SINGLE).unlink(), "holds neither"),
    (lambda b: (b / SINGLE).rename(b / "pytorch_model.bin"), "pytorch_model.bin .*save_pretrained"),
    (lambda b: (b / SINGLE).rename(b / "consolidated.00.pth"), "consolidated.00.pth .*pickles"),
    (lambda b: (b / SINGLE).write_bytes((b / SINGLE).read_bytes()[:-7]), f"{SINGLE}: not a whole"),
    (lambda b: (b / SINGLE).write_bytes(b"no header"), f"{SINGLE}: not a whole"),
    (lambda b: (b / "config.json").unlink(), "config.json: no such file"),
    (lambda b: (b / "config.json").write_text("[1"), "config.json: not a JSON object"),
    (lambda b: rewrite(b, lambda t: t.pop(UP)), f"{UP} is missing .*mlp.up\\[1\\]"),
    (
      lambda b: rewrite(b, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[UP]})),
      "layers.2.mlp.up_proj.weight fits no parameter",
    ),
    (
      lambda b: rewrite(b, lambda t: t.update({UP: t[UP][:, :-1].copy()})),
      rf"{UP} has shape \(128, 63\), .*mlp.up\[1\] wants \(128, 64\)",
    ),
    (
      lambda b: rewrite(b, lambda t: t.update({UP: t[UP].astype(np.int8)})),
      f"{UP} holds I8, expected one of F32, F16, BF16; .*before it was quantized",
    ),
    (
      lambda b: rewrite(b, lambda t: t.update({UP: t[UP].astype(ml_dtypes.float8_e4m3fn)})),
      f"{UP} holds F8_E4M3, expected one of F32, F16, BF16",
    ),
    (
      rename(lambda key: key.removeprefix("model.")),
      "holds layers.0.input_layernorm.weight, expected model.layers.0.input_layernorm.weight: .*"
      "begin with 'model.'; save it with AutoModelForCausalLM",
    ),
    (
      rename(lambda key: f"language_model.{key}"),
      "holds language_model.model.layers.0.input_layernorm.weight, expected model.layers.0.input",
    ),
    (
      configure(model_type="qwen2"),
      r"k_proj.bias is missing \(6 tensors are\), which fills blocks.attention.k.bias\[0\]",
    ),
    (
      configure(model_type="qwen3"),
      r"k_norm.weight is missing \(4 tensors are\), which fills blocks.attention.norm_k\[0\]",
    ),
    (
      lambda b: rewrite(b, lambda t: t.update({BIAS: np.zeros(64, np.float32)})),
      f"{BIAS} fits no parameter .* 2 layers with no biases, and no norms of heads",
    ),
    (
      configure(num_hidden_layers=10**6),
      "config.json wants 1000000 layers, it holds 20 tensors",
    ),
    (lambda b: shard(b, rename=lambda f: f.replace("b.", "c.")), "c.safetensors: no such file"),
    (lambda b: shard(b, rename=lambda f: "a.safetensors"), "a.safetensors: does not hold"),
    (lambda b: shard(b, rename=lambda f: "../" + f), "'../a.safetensors' is not a file name"),
    (lambda b: (shard(b), (b / INDEX).write_text("{}")), f"{INDEX}: expected an object"),
    (lambda b: (shard(b), (b / INDEX).write_text("[]")), f"{INDEX}: not a JSON object, but a list"),
    (lambda b: (shard(b), (b / INDEX).write_text("[" * 10**5)), f"{INDEX}: not a JSON object"),
    (lambda b: (shard(b), (b / INDEX).write_bytes(b"\xff")), f"{INDEX}: not a JSON object"),
    (lambda b: shard(b, rename=lambda f: 3), "3 is not a file name"),
    (lambda b: shard(b, rename=lambda f: ""), "no such file"),
    (lambda b: (shard(b), write_file(b / SINGLE)), f"{SINGLE}: stands beside {INDEX}"),
    (lambda b: (shard(b), write_file(b / "a.safetensors")), "a.safetensors: does not hold"),
  ],
)
def test_damage_is_reported_in_one_line(base, damage, message):
  damage(base)
  with pytest.raises(UserError, match=message) as error:
    opened(base)
  assert "\n" not in str(error.value)


def test_no_directory(tmp_path):
  with pytest.raises(UserError, match="absent: no such directory"):
    Checkpoint(tmp_path / "absent")


LLAMA3 = {
  **{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
  "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "gemma2"}, r"model_type is 'gemma2', expected one of llama \(Llama 2, 3, 3.1"),
    ({"sliding_window": 4096}, "sliding_window is 4096"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"hidden_size": None}, "hidden_size is None, expected an integer"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor"),
    ({"head_dim": 15}, "head_dim is 15, expected an even"),
    ({"head_dim": None, "num_attention_heads": 6}, "head_dim is None, .*no multiple of 6"),
    ({"num_attention_heads": 10**30}, "num_attention_heads is 10*, expected an integer from 1 to"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', expected a number > 0"),
    *(({"rms_norm_eps": x}, f"rms_norm_eps is {x}") for x in (float("nan"), 0, 1e-99, 2.0, True)),
    *(({"rope_parameters": {"rope_theta": x}}, "rope_theta from 1") for x in (5e-324, 1e299)),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is .*'gptq'.*weights"),
    *(
      ({"rope_parameters": None, "rope_scaling": {name: kind, "factor": 8.0}}, "rope_scaling is")
      for name in ("type", "rope_type")
      for kind in ("linear", "dynamic", "longrope", None, 3)
    ),
    ({"rope_parameters": None, "rope_scaling": {"factor": 8.0}}, "rope_scaling is .*'llama3'"),
    ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters is"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling is .*the same as in rope_parameters"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters is .*a rope_theta from 1 to"),
    ({"rope_parameters": None, "rope_theta": -1}, "rope_theta is -1, expected a rope_theta from 1"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected whole heads"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters is .*whole heads"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is .*'default' or 'llama3'"),
    *(
      ({"rope_parameters": LLAMA3 | change}, f"rope_parameters is .*expected {message}")
      for change, message in (
        ({"original_max_position_embeddings": 10**400}, "numbers"),
        ({"original_max_position_embeddings": 0.5}, "numbers"),
        ({"factor": 1e-9}, "numbers"),
        ({"low_freq_factor": 4}, "a low_freq_factor below high_freq_factor"),
      )
    ),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters is .*expected numbers"),
  ],
)
def test_architectures_that_are_not_ours_are_refused(base, change, message):
  file = base / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(UserError, match=message):
    read_architecture(base)


@pytest.mark.parametrize(
  "rope, theta",
  [
    ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": None}, 7.0),
    ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 7}, 7.0),
    ({"rope_parameters": None, "rope_theta": 8}, 8.0),
    ({"rope_parameters": None, "rope_theta": 8, "rope_scaling": {"type": "default"}}, 8.0),
    ({"rope_parameters": None, "rope_theta": None}, 10_000.0),
  ],
)
def test_rotations_of_older_and_newer_transformers_are_read(base, rope, theta):
  configure(**rope)(base)
  c = read_architecture(base)
  assert (c.rope_theta, c.rope_scaling) == (theta, None)


def test_large_checkpoints_are_written_in_shards(tmp_path, monkeypatch):
  monkeypatch.setattr("mmesid_jax.hf.safetensors_dir.SHARD_BYTES", 1000)
  rng = np.random.default_rng(0)
  tensors = {f"t{i}": rng.normal(size=(i + 1, 30)).astype(ml_dtypes.bfloat16) for i in range(12)}
  write_checkpoint(tmp_path / "out", tensors.items(), {})
  files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
  assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  back = Checkpoint(tmp_path / "out")
  assert {key: back.read(key).tobytes() for key in back.keys()} == {
    key: x.tobytes() for key, x in tensors.items()
  }


def test_what_belongs_to_a_model_goes_along_and_nothing_else(base, tmp_path):
  """Not an adapter's configuration, which transformers would follow to the adapter."""
  along = [
    *(
      "tokenizer.json",
      "tokenizer_config.json",
      "special_tokens_map.json",
      "generation_config.json",
    ),
    *("tokenizer.model", "chat_template.jinja", "additional_chat_templates/tools.jinja"),
    *("LICENSE.txt", "USE_POLICY.md"),
  ]
  stays = [
    *("adapter_config.json", "adapter_model.safetensors", "modeling_llama.py", "notes.txt"),
    *("trainer_state.json", "model.safetensors.index.json", "optimizer.pt", "evaluation.json"),
    *("original/tokenizer.model", ".secret.json"),
  ]
  for name in (*along, *stays):
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_text(f"this is {name}")
    (base / name).chmod(0o400)
  write_checkpoint(tmp_path / "out", [("a", np.zeros(3, np.float32))], {}, copy_from=base)
  written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
  assert written == {*along, "config.json", SINGLE}
  for name in along:
    assert (tmp_path / "out" / name).read_text() == f"this is {name}"
    assert (tmp_path / "out" / name).stat().st_mode & 0o200


def test_a_link_out_of_the_checkpoint_is_not_copied(base, tmp_path):
  (tmp_path / "secret").write_text("mine")
  (base / "LICENSE").symlink_to(tmp_path / "secret")
  with pytest.raises(UserError, match=r"LICENSE: is a link to .*secret, out of its directory"):
    write_checkpoint(tmp_path / "out", [], {}, copy_from=base)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, dtype, value):
  tensors = {"a": np.ones((4, 4), dtype), "b": np.ones((4, 4), dtype)}
  tensors["b"][2, 3] = value
  safetensors.numpy.save_file(tensors, tmp_path / SINGLE)
  checkpoint = Checkpoint(tmp_path)
  checkpoint.read("a"), checkpoint.read("b", slice(0, 2))
  with pytest.raises(UserError, match=f"{SINGLE}: b holds values that are not finite; .*damaged"):
    checkpoint.read("b", slice(1, 3))


def test_a_window_is_on_or_off(base):
  change = {"model_type": "qwen2", "use_sliding_window": "false"}
  (base / "config.json").write_text(
    json.dumps(json.loads((base / "config.json").read_text()) | change)
  )
  with pytest.raises(UserError, match="use_sliding_window is 'false', expected true or false"):
    read_architecture(base)


def test_links_of_the_cache_of_hugging_face_are_copied(tmp_path):
  snapshot, blobs = tmp_path / "model" / "snapshots" / "abc", tmp_path / "model" / "blobs"
  for folder in (snapshot, blobs):
    folder.mkdir(parents=True)
  (blobs / "123").write_text("free")
  (snapshot / "LICENSE").symlink_to("../../blobs/123")
  (snapshot / "NOTICE").symlink_to("LICENSE")
  write_checkpoint(tmp_path / "out", [], {}, copy_from=snapshot)
  assert [(tmp_path / "out" / x).read_text() for x in ("LICENSE", "NOTICE")] == ["free", "free"]


def test_an_export_never_lands_in_a_directory_that_is_there(tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(UserError, match="out: exists already"):
    write_checkpoint(tmp_path / "out", [], {})
  assert not list((tmp_path / "out").iterdir())


def test_an_export_that_fails_leaves_nothing(tmp_path):
  def tensors():
    yield "a", np.zeros(3, np.float32)
    raise RuntimeError("the source is damaged")

  with pytest.raises(RuntimeError, match="the source is damaged"):
    write_checkpoint(tmp_path / "out", tensors(), {})
  assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_an_export_in_one_line(tmp_path, monkeypatch):
  def save_file(*arguments, **options):
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

  monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
  with pytest.raises(UserError, match=f"^{tmp_path / 'out'}: no space left on device$"):
    write_checkpoint(tmp_path / "out", [("a", np.zeros(3, np.float32))], {})
  assert not list(tmp_path.iterdir())
