"""GGUF headers that are whole, and those that say more than the file holds."""

import struct

import pytest
from gguf_files import FIELDS, SHAPES, gguf_bytes, gguf_text

from mmesid_jax.errors import UserError
from mmesid_jax.hf.gguf_file import convert_gguf
from mmesid_jax.hf.gguf_header import read_gguf_header


@pytest.fixture
def file(tmp_path):
  return tmp_path / "model.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_header_is_read(version, file):
  file.write_bytes(gguf_bytes(version=version))
  header = read_gguf_header(file)
  single = {key: value for key, value in FIELDS.items() if not isinstance(value, list)}
  assert header.fields == pytest.approx(single)
  assert header.lengths == {"tokenizer.ggml.tokens": 3, "tokenizer.ggml.token_type": 3}
  assert header.shapes == SHAPES


def test_a_header_that_is_cut_off_anywhere_is_refused(file):
  whole = gguf_bytes()[:-512]
  for end in range(4, len(whole)):
    file.write_bytes(whole[:end])
    with pytest.raises(UserError, match=r"^[^\n]*model.gguf: [^\n]*$"):
      read_gguf_header(file)


HUGE = struct.pack("<Q", 2**62)
TOKENS = gguf_text("tokenizer.ggml.tokens") + struct.pack("<II", 9, 8)
TYPES = gguf_text("tokenizer.ggml.token_type") + struct.pack("<II", 9, 4)
NORM = gguf_text("output_norm.weight")
# What is looked for -> what stands after it instead -> the message.
HOSTILE = {
  "tensors": (b"GGUF" + struct.pack("<I", 3), HUGE, "'tensors and fields' of 4,6"),
  "texts": (TOKENS, HUGE, "'tokenizer.ggml.tokens' of 4,6"),
  "numbers": (TYPES, HUGE, "'tokenizer.ggml.token_type' of 18,4"),
  "a text": (TOKENS + struct.pack("<Q", 3), HUGE, "'tokenizer.ggml.tokens' of 4,6"),
  "lists in lists": (TYPES[:-4], struct.pack("<I", 9), "'tokenizer.ggml.token_type' with values"),
  "a kind": (gguf_text("llama.block_count"), struct.pack("<I", 99), "values of type 99"),
  "a name": (b"", b"GGUF\1\0\0\0", "version 1, expected 2 or 3"),
  "axes": (NORM, struct.pack("<I", 5), "'output_norm.weight' with 5 axes, expected 1 to 4"),
  "no axis": (NORM, struct.pack("<I", 0), "'output_norm.weight' with 0 axes"),
  "a shape": (NORM + struct.pack("<I", 1), HUGE, "of shape (46"),
  "an empty tensor": (NORM + struct.pack("<I", 1), bytes(8), "of shape (0,)"),
  "bytes": (struct.pack("<I", 8) + struct.pack("<Q", 5), b"\xff", "a text that is not UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_the_file_cannot_hold_is_refused(case, file):
  before, instead, message = HOSTILE[case]
  whole = gguf_bytes()
  at = whole.index(before) + len(before)
  file.write_bytes(whole[:at] + instead + whole[at + len(instead) :])
  with pytest.raises(UserError) as caught:
    read_gguf_header(file)
  assert str(caught.value).startswith(f"{file}: holds ") and message in str(caught.value)


def test_a_key_or_a_tensor_that_is_there_twice_is_refused(file):
  for name in ("llama.block_count", "blk.0.attn_k.weight"):
    twin = {"llama.block_count": "llama.block_COUNT", "blk.0.attn_k.weight": "blk.0.attn_v.weight"}
    fields = {"llama.block_COUNT": 2}
    content = gguf_bytes(fields).replace(gguf_text(twin[name]), gguf_text(name))
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"holds '{name}' twice"):
      read_gguf_header(file)


# transformers would build a model of these sizes before it looks at a tensor.
SIZES = {
  "layers": ({"llama.block_count": 2**31}, "llama.block_count does not fit its tensors"),
  "width": ({"llama.embedding_length": 2**31}, "llama.embedding_length does not fit"),
  "hidden": ({"llama.feed_forward_length": 13}, "does not fit its tensors (13 for 12)"),
  "vocabulary": ({"llama.vocab_size": 2**31}, "llama.vocab_size does not fit its tensors"),
  "heads": ({"llama.attention.head_count": 3}, "attention.head_count does not fit"),
  "more heads": ({"llama.attention.head_count": 2**31}, "attention.head_count does not fit"),
  "head width": ({"llama.attention.key_length": 8}, "attention.head_count does not fit"),
  "key heads": ({"llama.attention.head_count_kv": 2}, "head_count_kv does not fit its tensors"),
  "a number": ({"llama.block_count": 1.0}, "block_count is 1.0, expected an integer > 0"),
  "no heads": ({"llama.attention.head_count": 0}, "head_count is 0, expected an integer > 0"),
  "nothing": ({"llama.block_count": None}, "block_count is None, expected an integer > 0"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_are_not_those_of_the_tensors_are_refused(case, file, tmp_path):
  fields, message = SIZES[case]
  file.write_bytes(gguf_bytes(fields))
  with pytest.raises(UserError) as caught:
    convert_gguf(file, tmp_path / "out")
  assert str(caught.value).startswith(f"{file}: llama.") and message in str(caught.value)


def test_a_model_without_a_matrix_is_refused(file, tmp_path):
  for shape in (None, (8,)):
    file.write_bytes(gguf_bytes(shapes={"blk.0.attn_k.weight": shape}))
    with pytest.raises(UserError, match="attn_k.weight has [01] axes, expected 2"):
      convert_gguf(file, tmp_path / "out")
