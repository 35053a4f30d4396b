"""Turns texts or images of items into vectors, with a Hugging Face encoder or by TF-IDF.

Examples:
  python -m mmesid_jax.encode --data=DIR --modality=text --model=tfidf
  python -m mmesid_jax.encode --data=DIR --modality=text --model=MODEL_DIR
  python -m mmesid_jax.encode --data=DIR --modality=visual --model=MODEL_DIR --images=DIR/images

DIR holds items.jsonl, as the command prepare writes it. DIR/text.npy or DIR/visual.npy is written:
row i for item i, row 0 zeros; text.json beside it says what it was made from. MODEL_DIR is a local
folder (`hf download NAME --local-dir MODEL_DIR`) with weights in safetensors; nothing is
downloaded, and no code that comes with them is run. Needs PyTorch and Pillow: in the clone,
pip install --editable ".[encode]".

--model=tfidf needs neither a model nor PyTorch: it counts the words of the items' own texts
(TF-IDF, in 512 dimensions), in seconds. A folder of that name is --model=./tfidf.

The same command continues a run that was stopped or killed, from DIR/text.npy.partial; on the same
machine the table has the same bytes as that of an uninterrupted run.

Texts are made from an item's fields by --template. Models: sentence encoders (MiniLM, E5, BGE), the
text towers of CLIP and SigLIP. A folder of sentence-transformers is used as its modules.json says:
pooling, Dense, Normalize, length of texts, default prompt; --pooling replaces the pooling alone.
Without that file decoders want --pooling=last. Images: vision towers, or plain encoders (ViT,
DINOv2). An image is the file that the manifest of fetch_images names, or KEY.jpg (.png, ...), or
the path under `images` of items.jsonl.

Items without text or image, and broken images, get the mean row of the others (--missing=mean) or
zeros (--missing=zero). They cannot be dropped here, where items have ids already; the command
prepare with --config.require=title,image keeps only items that have them.

LLM2CLIP, as MME-SID uses it (1280 wide; titles through its Llama-3-8B tower, images through its
ViT-L/14-336, not normalized), cannot be loaded here: both of its models need Python code that comes
with them. Encode with that code instead (microsoft/LLM2CLIP-Openai-L-14-336 for images;
microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned in llm2vec's LLM2Vec, then `get_text_features`
of the first for texts), save vectors and keys, and join them by key with the command vectors.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.config.modality_names import RULE, is_modality_name
from mmesid_jax.errors import UserError
from mmesid_jax.features.item_template import DEFAULT_TEMPLATE

DATA = paths.define_path("data", None, "Folder with items.jsonl.")
MODALITY = flags.DEFINE_string(
  "modality", None, "Name of the table: text, visual, or another name."
)
MODEL = paths.define_path("model", None, "Folder of a Hugging Face model, or tfidf.")
OUTPUT = paths.define_path("output", None, "The .npy file, if not DATA/MODALITY.npy.")
TEMPLATE = flags.DEFINE_string(
  "template",
  DEFAULT_TEMPLATE,
  "Text of an item; a missing field is left out together with the text before it.",
)
MAX_LENGTH = flags.DEFINE_integer(
  "max_length",
  None,
  "Tokens of a text, if less than the model can read.",
  lower_bound=8,
  upper_bound=1 << 24,
)
IMAGES = paths.define_path("images", None, "Folder of images, which are encoded instead of texts.")
KEY = flags.DEFINE_string("key", "key", "Field of items.jsonl that names images.")
POOLING = flags.DEFINE_enum(
  "pooling",
  None,
  ["mean", "cls", "last", "max", "pooler"],
  "How token vectors become one; if not given, as modules.json says, and without that file mean "
  "for texts, pooler for images.",
)
NORMALIZE = flags.DEFINE_bool("normalize", True, "Give every vector length 1.")
flags.DEFINE_alias("normalise", "normalize")  # as it was called before
MISSING = flags.DEFINE_enum(
  "missing", "mean", ["mean", "zero"], "The vector of an item without text or image."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the numbers.")
BATCH = flags.DEFINE_integer(
  "batch", 64, "Items that are encoded at once.", lower_bound=1, upper_bound=65_536
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a table made from something else.")
flags.mark_flags_as_required(["data", "modality", "model"])
GROUPS = {
  "Required": "data=DIR modality=NAME model=DIR|tfidf",
  "Text": "template=TEXT max_length",
  "Images": "images=DIR key=FIELD",
  "Vectors": "pooling normalize missing",
  "Output": "output=FILE dtype batch overwrite",
}

MODEL_FLAGS = ("pooling", "max_length", "batch", "images", "key")  # that TF-IDF has no use for
TEXT_FLAGS, IMAGE_FLAGS = ("template", "max_length"), ("images", "key")
TEXT_POOLINGS, IMAGE_POOLINGS = ("mean", "cls", "last", "max"), ("pooler", "cls", "mean")


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.features.tfidf_encoder import TFIDF  # after parsing: numpy is for a good command

  model = None if MODEL.value == TFIDF else pathlib.Path(MODEL.value)
  _check_flags(model)
  from mmesid_jax.features.encode_items import EncodeSettings, encode_items

  data = pathlib.Path(DATA.value)
  encode_items(
    EncodeSettings(
      data=data,
      modality=MODALITY.value,
      model=model,
      output=pathlib.Path(OUTPUT.value or data / f"{MODALITY.value}.npy"),
      images=None if IMAGES.value is None else pathlib.Path(IMAGES.value),
      key=KEY.value,
      template=TEMPLATE.value,
      max_length=MAX_LENGTH.value,
      pooling=POOLING.value,
      normalize=NORMALIZE.value,
      missing=MISSING.value,
      dtype=DTYPE.value,
      batch=BATCH.value,
      overwrite=OVERWRITE.value,
    )
  )


def _check_flags(model: pathlib.Path | None) -> None:
  """Raises UserError for flags that do not fit each other. model: None = TF-IDF."""
  modality = MODALITY.value
  if not is_modality_name(modality):
    raise UserError(f"--modality={modality}: expected {RULE}")
  if model is None:
    if modality == "visual":
      raise UserError(f"--modality=visual: not with --model={MODEL.value}, which encodes texts")
    for name in MODEL_FLAGS:
      if flags.FLAGS[name].present:
        raise UserError(
          f"--{name}: not with --model={MODEL.value}, which encodes texts without a model"
        )
  if modality == "visual" and IMAGES.value is None:
    raise UserError("--images is missing; --modality=visual reads the items' images from a folder")
  if modality == "text" and IMAGES.value is not None:
    raise UserError("--images: not with --modality=text, which encodes texts")
  kind = "texts" if IMAGES.value is None else "images"
  for name in IMAGE_FLAGS if kind == "texts" else TEXT_FLAGS:
    if flags.FLAGS[name].present:
      raise UserError(f"--{name}: not with {kind}, which --modality={modality} encodes here")
  poolings = TEXT_POOLINGS if kind == "texts" else IMAGE_POOLINGS
  if POOLING.value not in (None, *poolings):
    raise UserError(
      f"--pooling={POOLING.value}: not with {kind}; expected one of {', '.join(poolings)}"
    )
  if OUTPUT.value is not None and not OUTPUT.value.endswith(".npy"):
    raise UserError(f"--output={OUTPUT.value}: expected a file that ends in .npy")


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
