"""Writes a model of a GGUF file as a Hugging Face folder, which training can start from.

Examples:
  python -m mmesid_jax.convert_gguf --file=MODEL.gguf --output=DIR
  python -m mmesid_jax.convert_gguf --file=SmolLM2-135M-Instruct.Q4_1.gguf --output=smollm2

DIR gets config.json, the weights in bfloat16, and the tokenizer's files. Llama, Mistral, Qwen2 and
Qwen3 are converted. This needs torch and gguf: pip install --editable ".[gguf]".
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths

FILE = paths.define_path("file", None, "The GGUF file.")
OUTPUT = paths.define_path("output", None, "The folder to write; it must not exist yet.")
flags.mark_flags_as_required(["file", "output"])
GROUPS = {"Required": "file=FILE output=DIR"}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.hf import gguf_file

  gguf_file.convert_gguf(pathlib.Path(FILE.value), pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
