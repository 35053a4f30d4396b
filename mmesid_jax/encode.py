"""Turns the texts or images of a dataset's items into a feature table, by a Hugging Face encoder:

  python -m mmesid_jax.encode --data=DIR --modality=text --model=MODEL_DIR
  python -m mmesid_jax.encode --data=DIR --modality=visual --model=MODEL_DIR --images=DIR/images

DIR holds items.jsonl, as mmesid_jax.prepare writes it; DIR/text.npy or DIR/visual.npy is written,
row i for item i, row 0 zero, and beside it text.json with what it was made from. MODEL_DIR is on
this disk (`hf download NAME --local-dir MODEL_DIR`), its weights safetensors; nothing is downloaded
and no code that lies beside them is run. PyTorch and Pillow: pip install "mmesid_jax[encode]".

The same command goes on where it was killed, from DIR/text.npy.partial; on the same machine the
table is equal, byte by byte, to that of a run without interruption.

Texts are what --template makes of an item's fields. Models: sentence encoders (MiniLM, E5, BGE:
--pooling=cls; decoders: --pooling=last), the text towers of CLIP and SigLIP. Images: their vision
towers, or plain encoders (ViT, DINOv2). An image is the file that the manifest of mmesid_jax.fetch
names, or KEY.jpg (.png, ...), or the path under `images` of items.jsonl.

Items without text or image, and images that are broken, get the mean row of the others
(--missing=mean) or zeros (--missing=zero). They cannot be dropped here, where ids are given
already; mmesid_jax.prepare with require=title,image keeps only items that have them.

LLM2CLIP, as MME-SID uses it (1280 wide; titles through its Llama-3-8B tower, images through its
ViT-L/14-336, not normalised), cannot be loaded here: both of its models need Python code that comes
with them. Encode with that code instead (microsoft/LLM2CLIP-Openai-L-14-336 for images;
microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned in llm2vec's LLM2Vec, then `get_text_features`
of the first for texts), save vectors and keys, and join them by key with mmesid_jax.vectors.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

DATA = flags.DEFINE_string("data", None, "Folder with items.jsonl.")
MODALITY = flags.DEFINE_enum("modality", None, ["text", "visual"], "What is encoded.")
MODEL = flags.DEFINE_string("model", None, "Hugging Face directory on this disk.")
OUTPUT = flags.DEFINE_string("output", None, "The .npy file; DATA/MODALITY.npy when not given.")
TEMPLATE = flags.DEFINE_string(
  "template",
  "Title: {title}. Brand: {brand}. Categories: {categories}",
  "Text of an item; a field that it lacks is left out with the text before it.",
)
MAX_LENGTH = flags.DEFINE_integer(
  "max_length", None, "Tokens of a text; what the model can read when not given.", lower_bound=8
)
IMAGES = flags.DEFINE_string("images", None, "Folder of images, for --modality=visual.")
KEY = flags.DEFINE_string("key", "key", "Field of items.jsonl that names images.")
POOLING = flags.DEFINE_enum(
  "pooling",
  None,
  ["mean", "cls", "last", "pooler"],
  "Of token vectors; text mean, visual pooler when not given.",
)
NORMALISE = flags.DEFINE_bool("normalise", True, "Give every vector length 1.")
MISSING = flags.DEFINE_enum("missing", "mean", ["mean", "zero"], "Row of an item with nothing.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the table.")
BATCH = flags.DEFINE_integer("batch", 64, "Items that are encoded at once.", lower_bound=1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a table made from something else.")
flags.mark_flags_as_required(["data", "modality", "model"])

OF_TEXT, OF_VISUAL = ("template", "max_length"), ("images", "key")
POOLINGS = {"text": ("mean", "cls", "last"), "visual": ("pooler", "cls", "mean")}


def main(argv: list[str]) -> None:
  del argv
  _check()
  from mmesid_jax.features import encode_items

  data = pathlib.Path(DATA.value)
  table = {
    "pooling": POOLING.value,
    "batch": BATCH.value,
    "output": pathlib.Path(OUTPUT.value or data / f"{MODALITY.value}.npy"),
    "normalise": NORMALISE.value,
    "missing": MISSING.value,
    "dtype": DTYPE.value,
    "overwrite": OVERWRITE.value,
  }
  if MODALITY.value == "text":
    encode_items.text(
      data,
      pathlib.Path(MODEL.value),
      template=TEMPLATE.value,
      max_length=MAX_LENGTH.value,
      **table,
    )
  else:
    encode_items.visual(
      data,
      pathlib.Path(MODEL.value),
      images=pathlib.Path(IMAGES.value),
      key=KEY.value,
      **table,
    )


def _check() -> None:
  """Raises UserError for flags that do not fit each other."""
  for name in OF_VISUAL if MODALITY.value == "text" else OF_TEXT:
    if flags.FLAGS[name].present:
      raise UserError(f"--{name}: not with --modality={MODALITY.value}")
  if MODALITY.value == "visual" and IMAGES.value is None:
    raise UserError("--images is missing; --modality=visual reads the items' images from a folder")
  if POOLING.value not in (None, *POOLINGS[MODALITY.value]):
    raise UserError(
      f"--pooling={POOLING.value}: not with --modality={MODALITY.value}; expected one of "
      f"{', '.join(POOLINGS[MODALITY.value])}"
    )
  if OUTPUT.value is not None and not OUTPUT.value.endswith(".npy"):
    raise UserError(f"--output={OUTPUT.value}: expected a file that ends in .npy")


if __name__ == "__main__":
  command_line.run_command(main)
