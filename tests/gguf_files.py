"""Writes headers of GGUF files by hand."""

import struct

KINDS = {int: (4, "<I"), float: (6, "<f"), bool: (7, "<?")}
D, F, V = 8, 12, 5
SHAPES = {
  "token_embd.weight": (D, V),
  "output_norm.weight": (D,),
  **{f"blk.0.attn_{x}.weight": (D, 8) for x in "q"},
  **{f"blk.0.attn_{x}.weight": (D, 4) for x in "kv"},
  "blk.0.attn_output.weight": (8, D),
  **{f"blk.0.ffn_{x}.weight": (D, F) for x in ("gate", "up")},
  "blk.0.ffn_down.weight": (F, D),
  **{f"blk.0.{x}_norm.weight": (D,) for x in ("attn", "ffn")},
}
FIELDS = {
  "general.architecture": "llama",
  "llama.block_count": 1,
  "llama.embedding_length": D,
  "llama.feed_forward_length": F,
  "llama.attention.head_count": 2,
  "llama.attention.head_count_kv": 1,
  "llama.attention.layer_norm_rms_epsilon": 1e-5,
  "tokenizer.ggml.add_bos_token": True,
  "tokenizer.ggml.tokens": ["a", "b", "é"],
  "tokenizer.ggml.token_type": [1, 1, 3],
}


def gguf_text(text: str) -> bytes:
  content = text.encode()
  return struct.pack("<Q", len(content)) + content


def gguf_value(value) -> bytes:
  """The number of a value's type, and the value."""
  if isinstance(value, str):
    return struct.pack("<I", 8) + gguf_text(value)
  if isinstance(value, list):
    parts = [gguf_value(x) for x in value]
    kind = struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts))
    return kind + b"".join(part[4:] for part in parts)
  number, letter = KINDS[type(value)]
  return struct.pack("<I", number) + struct.pack(letter, value)


def gguf_bytes(fields=(), shapes=(), *, version: int = 3) -> bytes:
  """A file with a whole header of a tiny Llama, and zeros for its numbers.

  fields, shapes: pairs that are added or changed; None takes one away.
  """
  fields, shapes = (
    {key: x for key, x in (whole | dict(changes)).items() if x is not None}
    for whole, changes in ((FIELDS, fields), (SHAPES, shapes))
  )
  out = b"GGUF" + struct.pack("<IQQ", version, len(shapes), len(fields))
  for key, value in fields.items():
    out += gguf_text(key) + gguf_value(value)
  for name, shape in shapes.items():
    axes = struct.pack(f"<{len(shape)}Q", *shape)
    out += gguf_text(name) + struct.pack("<I", len(shape)) + axes + struct.pack("<IQ", 0, 0)
  return out + bytes(512)
