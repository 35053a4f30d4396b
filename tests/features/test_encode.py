"""The flags of the command `encode`; what it makes is tested beside torch, in parity/."""

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
