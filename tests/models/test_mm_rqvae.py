"""MM-RQ-VAE: any set of modalities, and switches that do what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax.losses.info_nce import info_nce
from mmesid_jax.losses.mmd import mmd
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.quantize.kmeans import residual_kmeans

WIDTHS = {"collaborative": 6, "text": 9, "visual": 7}
OPTIONS = {
  "reconstruction": "mmd",
  "bandwidths": (0.5,),
  "alignment": "info_nce",
  "temperature": 0.1,
  "reconstruction_weight": 3.0,
  "quantization_weight": 1.0,
  "alignment_weight": 0.01,
}
SETS = [("text",), ("collaborative",), ("collaborative", "text"), ("text", "visual"), tuple(WIDTHS)]


def model(names=tuple(WIDTHS), *, grid=False, **changed):
  widths = {m: WIDTHS[m] for m in names}
  config = QuantizerConfig(**({"levels": 2, "codes": 4, "learning": "gradient"} | changed))
  return MMRQVAE(widths, hidden=(12, 10), D=8, quantizer=config, grid=grid, rngs=nnx.Rngs(0))


def features(names=tuple(WIDTHS), batch=16):
  rng = np.random.default_rng(0)
  return {m: rng.normal(size=(batch, WIDTHS[m])).astype(np.float32) for m in names}


def loss(model, x, **changed):
  return semantic_id_loss(model, x, **(OPTIONS | changed))


def passed(model, x):
  """modality -> quantized, decoded, quantization loss."""
  found = {}
  for m, x_BV in x.items():
    part = model.by_modality[m]
    q = part.quantizer(part.encoder(x_BV))
    found[m] = q.quantized_BD, part.decoder(q.quantized_BD), q.loss
  return found


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_sums_over_all_modalities(names):
  net, x = model(names), features(names)
  total, parts = loss(net, x)
  found = passed(net, x)
  expected = {
    "reconstruction": sum(mmd(x[m], found[m][1]) for m in names),
    "quantization": sum(found[m][2] for m in names),
    "alignment": 0.0,
  }
  if "collaborative" in names:  # the query; text and visual are never aligned with each other
    expected["alignment"] = sum(
      info_nce(found["collaborative"][0], found[m][0], 0.1) for m in names if m != "collaborative"
    )
  assert (parts["alignment"] > 0) == ("collaborative" in names and len(names) > 1)
  assert parts.keys() == expected.keys()
  for name, value in expected.items():
    assert parts[name].dtype == jnp.float32 and parts[name].shape == ()
    np.testing.assert_allclose(parts[name], value, rtol=1e-5)
  weighted = (
    3 * expected["reconstruction"] + expected["quantization"] + 0.01 * expected["alignment"]
  )
  np.testing.assert_allclose(total, weighted, rtol=1e-5)


def test_reconstruction_switch():
  net, x = model(), features()
  found = passed(net, x)
  mse = sum(((x[m] - found[m][1]) ** 2).mean() for m in x)
  kernel = sum(mmd(x[m], found[m][1]) for m in x)
  for kind, expected in (("mse", mse), ("mmd", kernel), ("both", mse + kernel)):
    parts = loss(net, x, reconstruction=kind)[1]
    np.testing.assert_allclose(parts["reconstruction"], expected, rtol=1e-5)
  several = loss(net, x, bandwidths=(0.1, 2.0))[1]["reconstruction"]
  expected = sum(mmd(x[m], found[m][1], (0.1, 2.0)) for m in x)
  np.testing.assert_allclose(several, expected, rtol=1e-5)


def test_alignment_switch():
  net, x = model(), features()
  q = {m: found[0] for m, found in passed(net, x).items()}
  expected = {
    "none": 0.0,
    "mmd": mmd(q["collaborative"], q["text"]) + mmd(q["collaborative"], q["visual"]),
  }
  for kind, value in expected.items():
    np.testing.assert_allclose(loss(net, x, alignment=kind)[1]["alignment"], value, rtol=1e-5)
  narrow = loss(net, x, alignment="mmd", bandwidths=(0.1,))[1]["alignment"]
  expected = sum(mmd(q["collaborative"], q[m], (0.1,)) for m in ("text", "visual"))
  np.testing.assert_allclose(narrow, expected, rtol=1e-5)


def test_temperature_and_sinkhorn_reach_the_loss():
  net, x = model(), features()
  base = loss(net, x)[1]
  assert loss(net, x, temperature=1.0)[1]["alignment"] != base["alignment"]
  spread = model(sinkhorn_epsilon=0.003)
  assert loss(spread, x)[1]["quantization"] != base["quantization"]


@pytest.mark.parametrize("switch", ["reconstruction", "alignment"])
def test_refuses_an_unknown_switch(switch):
  with pytest.raises(ValueError, match=f"{switch}.*infonce"):
    loss(model(), features(), **{switch: "infonce"})


def test_every_parameter_has_a_gradient():
  """The straight-through gradient reaches encoders; codebooks learn from the quantization loss
  alone."""
  net, x = model(), features()

  @functools.partial(nnx.jit, static_argnames="changed")
  def gradients(net, changed):
    return nnx.grad(lambda net: loss(net, x, **dict(changed))[0])(net)

  gradient = gradients(net, (("reconstruction", "mse"),))
  for path, value in nnx.to_flat_state(gradient):
    assert np.abs(value[...]).max() > 0, path
  gradient = gradients(net, (("quantization_weight", 0.0),))
  for m in x:
    np.testing.assert_array_equal(gradient.by_modality[m].quantizer.codebook_LCD[...], 0)


def test_encode_takes_the_nearest_codes():
  net, x = model(), features()
  for m, x_BV in x.items():
    part = net.by_modality[m]
    z, books = np.float64(part.encoder(x_BV)), np.float64(part.quantizer.codebook_LCD[...])
    for level, book in enumerate(books):
      code = ((z[:, None] - book) ** 2).sum(2).argmin(1)
      np.testing.assert_array_equal(net.encode(m, x_BV)[:, level], code)
      z -= book[code]


def test_widths_and_mirrored_decoder():
  part = model().by_modality["text"]
  assert [layer.kernel.shape for layer in part.encoder.layers] == [(9, 12), (12, 10), (10, 8)]
  assert [layer.kernel.shape for layer in part.decoder.layers] == [(8, 10), (10, 12), (12, 9)]


def test_relu_between_layers_and_none_behind():
  encoder, x = model().by_modality["text"].encoder, features()["text"]
  y = x
  for i, layer in enumerate(encoder.layers):
    y = y @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    y = np.maximum(y, 0) if i < len(encoder.layers) - 1 else y
  np.testing.assert_allclose(encoder(x), y, rtol=1e-4, atol=1e-5)
  assert (y < 0).any()


def test_xavier_normal_weights():
  wide = MMRQVAE({"a": 300}, hidden=(500,), D=8, quantizer=QuantizerConfig(1, 2), rngs=nnx.Rngs(0))
  kernel = wide.by_modality["a"].encoder.layers[0].kernel[...]
  np.testing.assert_allclose(jnp.std(kernel), (2 / 800) ** 0.5, rtol=0.02)


def test_loss_falls_in_training():
  """The paper's loss from k-means. Stop-gradients are no descent: other settings may rise."""
  net, x = model(), features(batch=32)
  for m, part in net.by_modality.items():
    book = residual_kmeans(part.encoder(x[m]), 2, 4, balanced=True)
    part.quantizer.codebook_LCD[...] = jnp.asarray(book)
  graph, params = nnx.split(net)
  adam = optax.adam(1e-3)
  state = adam.init(params)

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), x)[0])(params)
    update, state = adam.update(gradient, state)
    return optax.apply_updates(params, update), state, value

  values = []
  for _ in range(150):
    params, state, value = step(params, state)
    values.append(float(value))
  assert values[-1] < 0.6 * values[0]


def test_features_are_standardized_before_anything_else():
  """Tables in other units, with mean and scale set: the same codes and the same loss."""
  net, x = model(), features()
  expected, codes = loss(net, x), {m: net.encode(m, x_BV) for m, x_BV in x.items()}
  for part in net.by_modality.values():
    part.mean_V[...], part.scale[...] = part.mean_V[...] + 3.0, jnp.array(0.5)
  other = {m: 3.0 + 0.5 * x_BV for m, x_BV in x.items()}
  np.testing.assert_allclose(loss(net, other)[0], expected[0], rtol=1e-4)
  for m, x_BV in other.items():
    np.testing.assert_array_equal(net.encode(m, x_BV), codes[m])


def test_averaged_codebooks_move_with_all_weights_zero():
  x, zero = (
    features(),
    {f"{n}_weight": 0.0 for n in ("reconstruction", "quantization", "alignment")},
  )
  net = model(learning="average")
  value, parts = loss(net, x)
  np.testing.assert_allclose(
    value,
    3 * parts["reconstruction"] + parts["quantization"] + 0.01 * parts["alignment"],
    rtol=1e-5,
  )
  gradient = nnx.grad(lambda net: loss(net, x, **zero)[0])(net)
  for m in x:
    assert np.abs(gradient.by_modality[m].quantizer.codebook_LCD[...]).max() > 0
    np.testing.assert_array_equal(gradient.by_modality[m].encoder.layers[0].kernel[...], 0)
