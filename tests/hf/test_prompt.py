"""The prompt, token by token."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from checkpoints import SPECIAL, write_tiny_checkpoint, write_tokenizer
from tokenizers import models, pre_tokenizers

from mmesid_jax.config.presets import PROMPTS
from mmesid_jax.errors import UserError
from mmesid_jax.hf import chat_template
from mmesid_jax.hf.llama_weights import EMBEDDING
from mmesid_jax.hf.prompt import (
  estimate_prompt_lengths,
  fit_prompt,
  read_embeddings,
  tokenize_prompt,
)
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


def test_the_prompt_of_the_released_code_has_lost_its_beginning_and_its_spaces(base):
  prompt = tokenize_prompt(base, PROMPTS["released_code"])
  assert spelled(base, prompt.before) == [
    BEGIN,
    "{ Given the user's purchase history, predict next possible item to be purchased.",
  ]
  assert spelled(base, prompt.after) == [EOT, START, "assistant", STOP]


# Llama 3's own ids of the tokens that the prompts consist of, Ġ for a space and Ċ for a new line
LLAMA3 = {
  **{",": 11, ".": 13, "{": 90, "Ġ": 220, "ĊĊ": 271, "assistant": 78191, "system": 9125},
  **{"user": 882, "You": 2675, "Given": 22818, "ĠGiven": 16644, "Ġthe": 279, "Ġuser": 1217},
  **{"'s": 596, "Ġpurchase": 7782, "Ġhistory": 3925, "Ġpredict": 7168, "Ġnext": 1828},
  **{"Ġpossible": 3284, "Ġitem": 1537, "Ġto": 311, "Ġbe": 387, "Ġpurchased": 15075},
  **{"Ġare": 527, "Ġa": 264, "Ġhelpful": 11190, "ĠAI": 15592, "Ġassistant": 18328},
  **{"Ġfor": 369, "Ġrecommendations": 19075},
  **{SPECIAL[0]: 128000, SPECIAL[1]: 128006, SPECIAL[2]: 128007, SPECIAL[3]: 128009},
}
TASK = (1217, 596, 7782, 3925, 11, 7168, 1828, 3284, 1537, 311, 387, 15075, 13)
SPACE, ANSWER = 220, (128009, 128006, 78191, 128007)


def write_llama3_tokenizer(folder):
  """Llama 3's tokenizer with the words of the prompts only: they are cut as there, with its ids."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
  )
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocab=LLAMA3, merges=[], ignore_merges=True, unk_token="{")
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.add_special_tokens(SPECIAL)
  folder.mkdir()
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


def test_tokens_of_the_prompts_are_those_of_llama_3(tmp_path):
  """17 + 4 as the authors' code cuts its prompt, 34 + 5 as they document it."""
  llama3 = write_llama3_tokenizer(tmp_path / "llama3")
  code = tokenize_prompt(llama3, PROMPTS["released_code"])
  assert code.before == (128000, 90, 16644, 279, *TASK)
  assert code.after == ANSWER
  assert (len(code.before), len(code.after)) == (17, 4)
  paper = tokenize_prompt(llama3, PROMPTS["paper"])
  system = (128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 15592, 18328, 369, 19075)
  user = (128009, 128006, 882, 128007, 271, 22818, 279, *TASK)
  assert paper.before == (*system, *user, SPACE)
  assert paper.after == (SPACE, *ANSWER)
  assert (len(paper.before), len(paper.after)) == (34, 5)
  for text in PROMPTS.values():
    tokens = tokenize_prompt(llama3, text)
    counts = {"length": len(tokens.before), "response": len(tokens.after)}
    assert estimate_prompt_lengths(text) == counts
    assert fit_prompt(llama3, text) == text


CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
  "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
  "<s>[INST] {{ messages[0].content }} [/INST]"
)


@pytest.fixture
def other(tmp_path):
  """Makes the tokenizer of another family: single bytes and its own special tokens."""

  def make(*special, chat_template=None):
    folder = write_tokenizer(tmp_path / "other", special)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

  return make


def test_a_preset_takes_the_chat_form_of_another_family(other, capsys):
  folder = other("<|im_start|>", "<|im_end|>", chat_template=CHATML)
  text = fit_prompt(folder, PROMPTS["paper"])
  assert text == (
    "<|im_start|>system\nYou are a helpful AI assistant for recommendations<|im_end|>\n"
    "<|im_start|>user\nGiven the user's purchase history, predict next possible item to be "
    "purchased. {items}<|im_end|>\n<|im_start|>assistant\n"
  )
  out, err = capsys.readouterr()
  assert f"the tokenizer of {folder} cuts <|begin_of_text|> into 17 pieces, so it is in the" in out
  assert not err
  after = tokenize_prompt(folder, text).after
  assert (after[0], after[2], len(after)) == (257, 256, 1 + 1 + 1 + len("assistant\n"))
  assert fit_prompt(folder, text) == text
  code = fit_prompt(folder, PROMPTS["released_code"])
  assert code.startswith("<|im_start|>user\n{ Given the") and "purchased.{items}<|im_end|>" in code


def test_a_system_message_joins_the_user_s_where_it_has_no_place(other):
  folder = other("<s>", "</s>", chat_template=NO_SYSTEM)
  assert fit_prompt(folder, PROMPTS["paper"]) == (
    "<s>[INST] You are a helpful AI assistant for recommendations\n\nGiven the user's purchase "
    "history, predict next possible item to be purchased. {items} [/INST]"
  )


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BROKEN = ["{% broken", "{{ 1 / 0 }}", "always the same", "{{ 'a' * 10**10 }}", ENDLESS]


@pytest.mark.parametrize("template", [None, *BROKEN])
def test_without_a_chat_form_a_preset_stays_and_a_prompt_that_fits_is_named(
  other, template, capsys, monkeypatch
):
  script = pathlib.Path(chat_template.__file__).read_text().replace("SECONDS = 10", "SECONDS = 1")
  quick = other("<s>", chat_template=template).parent / "quick.py"
  quick.write_text(script)
  monkeypatch.setattr(chat_template, "__file__", str(quick))
  folder = quick.parent / "other"
  assert fit_prompt(folder, PROMPTS["paper"]) == PROMPTS["paper"]
  err = capsys.readouterr().err
  assert err.startswith("warning: --config.recommender.prompt.text: the tokenizer of ")
  assert "fits is \"Given the user's purchase history, predict next possible item to be pu" in err


def test_a_text_of_the_user_stays_and_a_prompt_that_fits_is_named(other, capsys):
  folder = other("<|im_start|>", "<|im_end|>", chat_template=CHATML)
  text = "<|begin_of_text|>My own: {items}"
  assert fit_prompt(folder, text) == text
  err = capsys.readouterr().err
  assert f"{folder} cuts <|begin_of_text|> into 17 pieces" in err
  assert '{items}<|im_end|>\\n<|im_start|>assistant\\n"' in err
  for fits in ("no special token {items}", "<|im_start|>{items}<|im_end|>"):
    assert fit_prompt(folder, fits) == fits
  assert capsys.readouterr() == ("", "")


def test_a_chat_form_that_is_no_token_of_its_own_family_is_taken(other, capsys):
  """TinyLlama's <|user|> is cut into pieces by its own tokenizer."""
  template = "<|user|>\n{{ messages[-1].content }}</s>\n<|assistant|>\n"
  folder = other("<s>", "</s>", chat_template=template)
  text = fit_prompt(folder, PROMPTS["paper"])
  assert text.startswith("<|user|>\nGiven the")
  assert fit_prompt(folder, text) == text
  assert not capsys.readouterr().err


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


@pytest.mark.parametrize(
  "change, message",
  [
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "its tokenizer does not load"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": ".+"}, "content": ""}}, "no tokens"),
  ],
)
def test_a_hostile_tokenizer_is_one_line(base, tmp_path, change, message):
  """The first ends in a panic of the library in Rust, which is no Exception of Python."""
  directory = shutil.copytree(base, tmp_path / "base")
  content = json.loads((directory / "tokenizer.json").read_text())
  (directory / "tokenizer.json").write_text(json.dumps(content | change))
  with pytest.raises(UserError, match=message):
    tokenize_prompt(directory, "hello items: {items} next:")


def test_only_the_rows_of_the_prompt_are_read(base):
  checkpoint = Checkpoint(base)
  table = safetensors.numpy.load_file(base / SINGLE)[EMBEDDING]
  found = read_embeddings(checkpoint, (7, 259, 7))
  np.testing.assert_array_equal(found, table[[7, 259, 7]].astype(np.float32))
  assert checkpoint.bytes_read == 3 * table[0].nbytes
  assert read_embeddings(checkpoint, ()).shape == (0, table.shape[1])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.update({"lm_head.weight": t.pop(EMBEDDING)}), f"{EMBEDDING} is missing, which"),
    (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.int8)}), f"{EMBEDDING} holds I8"),
  ],
)
def test_a_table_that_is_missing_or_quantized_is_refused(base, tmp_path, change, message):
  tensors = safetensors.numpy.load_file(base / SINGLE)
  change(tensors)
  safetensors.numpy.save_file(tensors, tmp_path / SINGLE)
  with pytest.raises(UserError, match=message):
    read_embeddings(Checkpoint(tmp_path), (1,))


def test_a_tokenizer_of_another_checkpoint_is_refused(base):
  with pytest.raises(UserError, match="token 260, the table has 260 rows"):
    read_embeddings(Checkpoint(base), (1, 260))
