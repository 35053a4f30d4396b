"""The prompt, token by token."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import SPECIAL, write_tiny_checkpoint

from mmesid_jax.config.presets import PROMPTS
from mmesid_jax.errors import UserError
from mmesid_jax.hf.llama_weights import EMBEDDING
from mmesid_jax.hf.prompt import read_embeddings, tokenize_prompt
from mmesid_jax.hf.safetensors_dir import SINGLE, Checkpoint

BEGIN, START, STOP, EOT = range(256, 260)  # ids of SPECIAL: they follow the bytes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  directory = tmp_path_factory.mktemp("prompt") / "base"
  write_tiny_checkpoint(directory)
  return directory


def spelled(directory, tokens) -> list:
  """Special tokens as their ids, the rest as text."""
  vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
  letters = {i: letter for letter, i in vocabulary.items()}
  out = []
  for token in tokens:
    if token >= 256:
      out.append(token)
    elif out and isinstance(out[-1], str):
      out[-1] += letters[token]
    else:
      out.append(letters[token])
  return [x.replace("Ġ", " ").replace("Ċ", "\n") if isinstance(x, str) else x for x in out]


def test_the_prompt_of_the_paper_token_by_token(base):
  prompt = tokenize_prompt(base, PROMPTS["paper"])
  assert spelled(base, prompt.before) == [
    *(BEGIN, START, "system", STOP),
    *("\n\nYou are a helpful AI assistant for recommendations", EOT),
    *(START, "user", STOP),
    "\n\nGiven the user's purchase history, predict next possible item to be purchased. ",
  ]
  assert spelled(base, prompt.after) == [" ", EOT, START, "assistant", STOP]


def test_the_prompt_of_the_released_code_has_lost_its_beginning(base):
  prompt = tokenize_prompt(base, PROMPTS["released_code"])
  assert spelled(base, prompt.before) == [
    BEGIN,
    "{ Given the user's purchase history, predict next possible item to be purchased. ",
  ]
  assert prompt.after == tokenize_prompt(base, PROMPTS["paper"]).after


def test_nothing_is_added_to_the_literal_text(base):
  assert spelled(base, tokenize_prompt(base, "a {items}").before) == ["a "]
  assert tokenize_prompt(base, "a {items}").after == ()


def test_special_tokens_of_the_tokenizer_stay_one_token(base):
  assert tokenize_prompt(base, "".join(SPECIAL) + "{items}").before == (BEGIN, START, STOP, EOT)


@pytest.mark.parametrize(
  "text", ["no items", "{items} after", "{items} {items}", "a {items}{items}"]
)
def test_a_text_without_one_place_for_items_is_refused(base, text):
  with pytest.raises(UserError, match="prompt.text=.*expected text, {items} once"):
    tokenize_prompt(base, text)


def test_a_tokenizer_that_needs_its_own_code_is_refused_and_nobody_is_asked(
  base, tmp_path, monkeypatch
):
  directory = shutil.copytree(base, tmp_path / "base")
  for name, change in {
    "tokenizer_config.json": {"tokenizer_class": "OwnTokenizer"},
    "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
  }.items():
    content = json.loads((directory / name).read_text()) if (directory / name).is_file() else {}
    own = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}}
    (directory / name).write_text(json.dumps(content | own | change))
  (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
  asked = []
  monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
  with pytest.raises(UserError, match="its tokenizer needs code of its own, which is not run"):
    tokenize_prompt(directory, PROMPTS["paper"])
  assert not asked
  assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path):
  with pytest.raises(UserError, match="neither tokenizer.json nor tokenizer.model; copy"):
    tokenize_prompt(tmp_path, PROMPTS["paper"])


def test_a_damaged_tokenizer_is_one_line(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="its tokenizer does not load") as caught:
    tokenize_prompt(tmp_path, PROMPTS["paper"])
  assert "\n" not in str(caught.value)


def test_only_the_rows_of_the_prompt_are_read(base):
  checkpoint = Checkpoint(base)
  table = safetensors.numpy.load_file(base / SINGLE)[EMBEDDING]
  found = read_embeddings(checkpoint, (7, 259, 7))
  np.testing.assert_array_equal(found, table[[7, 259, 7]].astype(np.float32))
  assert checkpoint.bytes_read == 3 * table[0].nbytes
  assert read_embeddings(checkpoint, ()).shape == (0, table.shape[1])


def test_a_tokenizer_of_another_checkpoint_is_refused(base):
  with pytest.raises(UserError, match="token 260, the table has 260 rows"):
    read_embeddings(Checkpoint(base), (1, 260))
