"""The flags of the command `encode`; its vectors are tested in tests/parity/test_encoders.py."""

import pytest
from commands import refused

DATA, MODEL = "--data=nowhere", "--model=nowhere"
TEXT, VISUAL = (DATA, MODEL, "--modality=text"), (DATA, MODEL, "--modality=visual", "--images=x")


def test_flags_that_do_not_fit_are_refused():
  assert "--template: not with" in refused("encode", *VISUAL, "--template={title}")
  assert "--images: not with" in refused("encode", *TEXT, "--images=x")
  assert "--images is missing" in refused("encode", *VISUAL[:-1])
  assert "--pooling=last: not with" in refused("encode", *VISUAL, "--pooling=last")
  assert "--pooling=pooler: not with" in refused("encode", *TEXT, "--pooling=pooler")
  assert "ends in .npy" in refused("encode", *TEXT, "--output=x.safetensors")
  assert "nowhere/items.jsonl: no such file" in refused("encode", *TEXT)


@pytest.mark.parametrize("more", [(), ("--images=x", "--pooling=cls")])
def test_a_modality_may_have_any_name(more):
  line = refused("encode", DATA, MODEL, "--modality=audio_2", *more)
  assert "nowhere/items.jsonl: no such file" in line  # the flags were accepted
  for name in ("a/b", "Audio", "items", "train"):  # configurations could not name them
    line = refused("encode", DATA, MODEL, f"--modality={name}", *more)
    assert f"--modality={name}: expected a name of lower-case letters" in line


def test_images_decide_what_a_modality_of_any_name_encodes():
  cover = (DATA, MODEL, "--modality=cover")
  assert "--template: not with images" in refused(
    "encode", *cover, "--images=x", "--template={title}"
  )
  assert "--key: not with texts" in refused("encode", *cover, "--key=asin")
