"""Adapters: what is written is read again, and one that does not fit is refused in one line."""

import dataclasses
import errno
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from mmesid_jax.errors import UserError
from mmesid_jax.hf.adapter import (
  CONFIG,
  WEIGHTS,
  check_adapter,
  describe_adapter,
  read_adapter,
  write_adapter,
)
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.parallel.variables import LoRAParam

LORA = LoRAConfig(rank=4, alpha=8.0, targets=("q", "out", "down"))
SIZES = LlamaConfig(layers=2, D=16, F=24, N=4, K=2, H=8, lora=LORA)
DOWN = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"


def adapted(seed=0, **changes) -> Llama:
  """Random factors, B too."""
  llama = Llama(dataclasses.replace(SIZES, **changes), rngs=nnx.Rngs(seed))
  rng = np.random.default_rng(seed)
  state = nnx.state(llama, LoRAParam)
  for _, factor in nnx.to_flat_state(state):
    factor.set_value(rng.normal(size=factor.shape).astype(np.float32))
  nnx.update(llama, state)
  return llama


def factors(llama: Llama) -> dict[str, np.ndarray]:
  flat = nnx.to_flat_state(nnx.state(llama, LoRAParam))
  return {".".join(map(str, path)): np.asarray(factor[...]) for path, factor in flat}


@pytest.fixture
def written(tmp_path):
  write_adapter(adapted(), tmp_path / "adapter", base="base")
  return tmp_path / "adapter"


def edit(directory, **fields):
  file = directory / CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(directory, change):
  tensors = safetensors.numpy.load_file(directory / WEIGHTS)
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / WEIGHTS)


def test_what_was_written_is_read(written):
  other = adapted(seed=1)
  expected = factors(adapted())
  assert any((x != expected[name]).any() for name, x in factors(other).items())
  read_adapter(other, written)
  for name, x in factors(other).items():
    np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_a_second_one_takes_the_place_of_the_first(written):
  write_adapter(adapted(seed=1), written, base="base")
  llama = adapted(seed=2)
  read_adapter(llama, written)
  for name, x in factors(adapted(seed=1)).items():
    np.testing.assert_array_equal(x, factors(llama)[name])
  assert sorted(p.name for p in written.parent.iterdir()) == ["adapter"]


def test_one_that_finds_no_space_leaves_the_first(written, monkeypatch):
  def save_file(*arguments, **options):
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

  monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
  with pytest.raises(UserError, match=f"^{written}: no space left on device$"):
    write_adapter(adapted(seed=1), written, base="base")
  monkeypatch.undo()
  read_adapter(adapted(), written)


def test_one_that_cannot_get_its_name_leaves_the_first(written, monkeypatch):
  real = os.replace

  def refuse_new(source, target):
    if pathlib.Path(target) == written and not (pathlib.Path(source) / "first").exists():
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    real(source, target)

  (written / "first").touch()
  monkeypatch.setattr(os, "replace", refuse_new)
  with pytest.raises(UserError, match=f"^{written}: input/output error$"):
    write_adapter(adapted(seed=1), written, base="base")
  monkeypatch.undo()
  assert sorted(p.name for p in written.parent.iterdir()) == ["adapter"]
  llama = adapted(seed=2)
  read_adapter(llama, written)
  for name, x in factors(adapted()).items():
    np.testing.assert_array_equal(x, factors(llama)[name])


def test_other_files_in_its_folder_stay(written):
  (written / "README.md").write_text("notes")
  write_adapter(adapted(seed=1), written, base="base")
  assert (written / "README.md").read_text() == "notes"
  read_adapter(adapted(), written)
  assert sorted(p.name for p in written.parent.iterdir()) == ["adapter"]


def test_it_says_how_many_projections_are_adapted():
  size = 2 * 4 * ((16 + 32) + (32 + 16) + (24 + 16))  # layers * rank * (in + out)
  says = f"LoRA: matched 6 projections, {size / 1e6:.2f} M parameters"
  assert describe_adapter(adapted()) == says


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"r": 8}, "r is 8, the configuration has 4"),
    ({"lora_alpha": 16}, "lora_alpha is 16, the configuration has 8.0"),
    ({"use_rslora": True}, "use_rslora is True"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"bias": "all"}, "bias is 'all'"),
    *(
      ({"init_lora_weights": name}, f"init_lora_weights is '{name}', which changes the base")
      for name in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "of 2030")
    ),
    ({"use_dora": True}, "use_dora is set, expected plain LoRA"),
    ({"lora_bias": True}, "lora_bias is set"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is set"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is set"),
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is set"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices is set"),
    ({"layers_to_transform": [1]}, "layers_to_transform is set"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
    ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens is set"),
    ({"use_qalora": True}, "use_qalora is set"),
    ({"kasa_config": {"beta": 1}}, "kasa_config is set"),
    ({"target_parameters": ["q_proj.weight"]}, "target_parameters is set"),
    ({"a_field_of_2030": 1}, "a_field_of_2030 is set"),
    ({"target_modules": ["q_proj"]}, r"target_modules is \['q_proj'\], .*'down_proj', 'o_proj'"),
    ({"target_modules": "all-linear"}, "target_modules is 'all-linear'"),
    ({"target_modules": [["q_proj"]]}, "target_modules is"),
  ],
)
def test_an_adapter_of_another_kind_is_refused_by_its_field(written, fields, message):
  edit(written, **fields)
  with pytest.raises(UserError, match=f"{CONFIG}: {message}"):
    check_adapter(adapted(), written)


def test_fields_that_peft_leaves_out_have_its_defaults(written):
  config = json.loads((written / CONFIG).read_text())
  (written / CONFIG).write_text(
    json.dumps({k: v for k, v in config.items() if k not in ("use_rslora", "bias")})
  )
  check_adapter(adapted(), written)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_as_it_is_are_read(written, start):
  edit(written, init_lora_weights=start, eva_config={"rho": 2.0}, qalora_group_size=16)
  edit(written, megatron_core="megatron.core", rank_pattern={}, use_dora=False, revision="main")
  check_adapter(adapted(), written)


def test_an_adapter_of_a_llama_without_its_head_is_named_as_such(written):
  tensors = safetensors.numpy.load_file(written / WEIGHTS)
  renamed = {key.replace("model.model.", "model."): x for key, x in tensors.items()}
  safetensors.numpy.save_file(renamed, written / WEIGHTS)
  name = "layers.0.mlp.down_proj.lora_A.weight"
  says = f"holds base_model.model.{name}, expected base_model.model.model.{name}; train it on"
  with pytest.raises(UserError, match=says):
    check_adapter(adapted(), written)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.update({DOWN: t[DOWN].astype(np.int8)}), f"{DOWN} holds I8, expected F32, F16"),
    (lambda t: t.pop(DOWN), f"{DOWN} is missing; .*another base"),
    (lambda t: t.update(more=t[DOWN]), "more is not of this model; .*another base"),
    (lambda t: t.update({DOWN: t[DOWN].T.copy()}), r"\(24, 4\), .*want \(4, 24\)"),
  ],
)
def test_weights_that_do_not_fit_are_named(written, change, message):
  rewrite(written, change)
  with pytest.raises(UserError, match=message):
    check_adapter(adapted(), written)


@pytest.mark.parametrize("changes", [{"layers": 3}, {"F": 32}, {"D": 32}])
def test_an_adapter_of_another_base_is_refused(written, changes):
  with pytest.raises(UserError, match=WEIGHTS):
    check_adapter(adapted(**changes), written)


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda d: (d / CONFIG).unlink(), "no such file; name the directory of a PEFT adapter"),
    (lambda d: (d / CONFIG).write_text("{"), "not a JSON object"),
    (lambda d: (d / CONFIG).write_text("[]"), "not a JSON object"),
    (lambda d: (d / CONFIG).write_text("[" * 10**5), "not a JSON object"),
    (lambda d: (d / WEIGHTS).rename(d / "adapter_model.bin"), "pickled adapters are not opened"),
    (lambda d: (d / WEIGHTS).write_bytes(b"\x10"), "not a whole safetensors file"),
  ],
)
def test_damage_is_reported_in_one_line(written, damage, message):
  damage(written)
  with pytest.raises(UserError, match=message) as caught:
    check_adapter(adapted(), written)
  assert "\n" not in str(caught.value)
