"""The residual quantizer against numpy, level by level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.models.residual_quantizer import QuantizerConfig, ResidualQuantizer
from mmesid_jax.quantize.sinkhorn import sinkhorn

LEVELS, CODES, D, MU = 3, 5, 4, 0.25


def make(**changed):
  config = {"levels": LEVELS, "codes": CODES, "commitment": MU, "learning": "gradient"} | changed
  return ResidualQuantizer(QuantizerConfig(**config), D, rngs=nnx.Rngs(0))


@pytest.fixture
def quantizer():
  return make()


@pytest.fixture
def z():
  return np.random.default_rng(0).normal(size=(32, D)).astype(np.float32)


def oracle(z, books):
  """Codes, residual and loss in float64."""
  residual, codes, losses = np.float64(z), [], []
  for book in np.float64(books):
    code = np.array(
      [min(range(len(book)), key=lambda k: ((r - book[k]) ** 2).sum()) for r in residual]
    )
    losses.append((1 + MU) * ((residual - book[code]) ** 2).mean())  # both terms have one value
    residual = residual - book[code]
    codes.append(code)
  return np.stack(codes, 1), residual, np.mean(losses)


def test_codes_residual_and_loss(quantizer, z):
  found = quantizer(z)
  codes, residual, loss = oracle(z, quantizer.codebook_LCD[...])
  assert found.code_BL.dtype == jnp.int32
  np.testing.assert_array_equal(found.code_BL, codes)
  np.testing.assert_allclose(found.residual_BD, residual, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


def test_quantized_and_residual_make_the_input(quantizer, z):
  found = quantizer(z)
  np.testing.assert_allclose(found.quantized_BD + found.residual_BD, z, rtol=1e-5, atol=1e-6)


def test_quantized_is_what_the_codes_decode_to(quantizer, z):
  found = quantizer(z)
  decoded = quantizer.decode(found.code_BL)
  np.testing.assert_allclose(found.quantized_BD, decoded, rtol=1e-5, atol=1e-6)
  expected = sum(np.asarray(quantizer.codebook_LCD[l])[found.code_BL[:, l]] for l in range(LEVELS))  # noqa: E741
  np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6)


def test_straight_through_gradient_is_the_identity(quantizer, z):
  weight = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
  to_z = jax.grad(lambda z: (quantizer(z).quantized_BD * weight).sum())(z)
  np.testing.assert_allclose(to_z, weight, rtol=1e-6)
  to_books = nnx.grad(lambda q: (q(z).quantized_BD * weight).sum())(quantizer)
  np.testing.assert_array_equal(to_books.codebook_LCD[...], 0)


def test_loss_pulls_codes_and_input_to_each_other(quantizer, z):
  """Codebooks feel the first term with weight 1, the input the second with weight mu."""
  codes, _, _ = oracle(z, quantizer.codebook_LCD[...])
  books = np.float64(quantizer.codebook_LCD[...])
  to_books, to_z = np.zeros_like(books), np.zeros(z.shape)
  residual, scale = np.float64(z), 2 / z.size / LEVELS
  for level, book in enumerate(books):
    residual = residual - book[codes[:, level]]
    np.add.at(to_books[level], codes[:, level], -scale * residual)
    to_z += MU * scale * residual
  found = nnx.grad(lambda q: q(z).loss)(quantizer).codebook_LCD[...]
  np.testing.assert_allclose(found, to_books, rtol=1e-4, atol=1e-7)
  found = jax.grad(lambda z: quantizer(z).loss)(z)
  np.testing.assert_allclose(found, to_z, rtol=1e-4, atol=1e-7)


def released(z, books):
  """The released code's quantizer, every level straight through: quantized vector and loss."""
  residual, quantized, losses = z, 0.0, []
  for book in books:
    code = ((jax.lax.stop_gradient(residual)[:, None] - book) ** 2).sum(2).argmin(1)
    v = book[code]
    commitment = ((residual - jax.lax.stop_gradient(v)) ** 2).mean()
    losses.append(((v - jax.lax.stop_gradient(residual)) ** 2).mean() + MU * commitment)
    through = residual + jax.lax.stop_gradient(v - residual)
    quantized, residual = quantized + through, residual - through
  return quantized, jnp.stack(losses).mean()


def test_commitment_of_the_first_level_alone_is_the_released_code(quantizer, z):
  """Loss and quantized vector are those of all levels; their gradient to the input is not."""
  first, weight = make(commitment_levels="first"), np.random.default_rng(1).normal(size=z.shape)
  books = jnp.asarray(quantizer.codebook_LCD[...])

  def ours(z, net):
    found = net(z)
    return 7.0 * found.loss + (found.quantized_BD * weight).sum()

  def theirs(z, books):
    quantized, loss = released(z, books)
    return 7.0 * loss + (quantized * weight).sum()

  expected, (to_z, to_books) = jax.value_and_grad(theirs, (0, 1))(z, books)
  np.testing.assert_allclose(ours(z, first), expected, rtol=1e-5)
  np.testing.assert_allclose(ours(z, quantizer), expected, rtol=1e-5)
  np.testing.assert_allclose(jax.grad(ours)(z, first), to_z, rtol=1e-4, atol=1e-6)
  found = nnx.grad(lambda net: ours(z, net))(first).codebook_LCD[...]
  np.testing.assert_allclose(found, to_books, rtol=1e-4, atol=1e-6)
  gap = 7.0 * MU * 2 / z.size / LEVELS * sum(_residuals(z, books)[1:])
  np.testing.assert_allclose(jax.grad(ours)(z, quantizer) - to_z, gap, rtol=1e-3, atol=1e-6)


def _residuals(z, books):
  """The residual that remains after each level, float64."""
  codes, _, _ = oracle(z, books)
  left = [np.float64(z)]
  for level, book in enumerate(np.float64(books)):
    left.append(left[-1] - book[codes[:, level]])
  return left[1:]


@pytest.mark.parametrize("first", ["codes", "samples"])
def test_sinkhorn_scales_first_what_it_is_told(quantizer, z, first):
  z = np.tile(z, (4, 1)) + np.random.default_rng(2).normal(size=(128, D)).astype(np.float32)
  found = make(sinkhorn_epsilon=0.01, sinkhorn_iterations=1, sinkhorn_first=first)(z, training=True)
  plain = quantizer(z)
  book = np.asarray(quantizer.codebook_LCD[LEVELS - 1])
  before = z - quantizer.decode(plain.code_BL) + book[plain.code_BL[:, -1]]
  distance = ((before[:, None] - book) ** 2).sum(2)
  expected, other = (
    sinkhorn(distance, epsilon=0.01, iterations=1, first=order).argmax(1)
    for order in (first, {"codes": "samples", "samples": "codes"}[first])
  )
  np.testing.assert_array_equal(found.code_BL[:, -1], expected)
  assert (expected != other).any()


def test_sinkhorn_assigns_the_last_level_only(quantizer, z):
  spread = make(sinkhorn_epsilon=0.003)
  np.testing.assert_array_equal(spread(z).code_BL, quantizer(z).code_BL)  # as it is exported
  plain, spread = quantizer(z), spread(z, training=True)
  np.testing.assert_array_equal(spread.code_BL[:, :-1], plain.code_BL[:, :-1])
  book = np.asarray(quantizer.codebook_LCD[LEVELS - 1])
  before = z - quantizer.decode(plain.code_BL) + book[plain.code_BL[:, -1]]
  distance = ((before[:, None] - book) ** 2).sum(2)
  expected = sinkhorn(distance, epsilon=0.003, iterations=50).argmax(1)
  np.testing.assert_array_equal(spread.code_BL[:, -1], expected)
  assert (spread.code_BL[:, -1] != plain.code_BL[:, -1]).any()
  np.testing.assert_allclose(spread.quantized_BD + spread.residual_BD, z, rtol=1e-5, atol=1e-6)


def test_a_step_moves_a_code_to_the_mean_of_its_items(z):
  """Rate 1 puts it there; a code without items goes `revival` of the way to an item's residual."""
  averaged = make(learning="average", revival=0.25, levels=1)
  averaged.codebook_LCD[...] = averaged.codebook_LCD[...].at[0, 2].set(100.0)  # nobody's nearest
  found = averaged(z)
  assert found.averaging == 0
  book, code = np.float64(averaged.codebook_LCD[0]), np.asarray(found.code_BL)[:, 0]
  moved = book - np.float64(nnx.grad(lambda q: q(z).averaging)(averaged).codebook_LCD[0])
  for c in range(CODES):
    expected = z[code == c].mean(0) if (code == c).any() else book[c] + 0.25 * (z[c] - book[c])
    np.testing.assert_allclose(moved[c], expected, rtol=1e-4, atol=1e-5)
  assert not (code == 2).any()
  np.testing.assert_array_equal(nnx.grad(lambda q: q(z).loss)(averaged).codebook_LCD[...], 0)
  np.testing.assert_array_equal(jax.grad(lambda z: averaged(z).averaging)(z), 0)


def test_averaging_converges_to_the_means_of_every_level(z):
  """Lloyd's algorithm in steps: in the end codes are means of the residuals that chose them."""
  averaged, step = make(learning="average"), nnx.jit(nnx.grad(lambda q, z: q(z).averaging))
  for _ in range(300):
    gradient = step(averaged, z)
    averaged.codebook_LCD[...] -= 0.3 * gradient.codebook_LCD[...]
  residual, code = np.float64(z), np.asarray(averaged(z).code_BL)
  for level in range(LEVELS):
    book = np.float64(averaged.codebook_LCD[level])
    for c in np.unique(code[:, level]):
      own = residual[code[:, level] == c]
      np.testing.assert_allclose(book[c], own.mean(0), atol=1e-3)
    residual = residual - book[code[:, level]]


def test_gradient_of_the_loss_equals_finite_differences(quantizer, z):
  """float64. What the loss holds constant is held at its value: codes, sg(r) and sg(v)."""
  z, books = np.float64(z), np.float64(quantizer.codebook_LCD[...])
  codes, _, _ = oracle(z, books)
  chosen = [book[codes[:, level]] for level, book in enumerate(books)]
  before = [z - sum(chosen[:level]) for level in range(LEVELS)]

  def loss(z, books):
    total = 0.0
    for level, book in enumerate(books):
      residual = z - sum(chosen[:level])
      to_code = ((before[level] - book[codes[:, level]]) ** 2).mean()
      total += to_code + MU * ((residual - chosen[level]) ** 2).mean()
    return total / LEVELS

  def difference(x, i, value, step=1e-5):
    up, down = x.copy(), x.copy()
    up[i] += step
    down[i] -= step
    return (value(up) - value(down)) / (2 * step)

  with jax.enable_x64(True):
    quantizer.codebook_LCD = nnx.Param(jnp.asarray(books))
    to_z = np.asarray(jax.grad(lambda z: quantizer(z).loss)(jnp.asarray(z)))
    to_books = np.asarray(nnx.grad(lambda q: q(jnp.asarray(z)).loss)(quantizer).codebook_LCD[...])
  assert to_z.dtype == to_books.dtype == np.float64
  for i in ((0, 0), (7, 2), (31, 3)):
    expected = difference(z, i, lambda z: loss(z, books))
    np.testing.assert_allclose(to_z[i], expected, rtol=1e-7)
  for level in range(LEVELS):  # a code that is in use
    i = (level, codes[0, level], 1)
    expected = difference(books, i, lambda books: loss(z, books))
    assert expected != 0
    np.testing.assert_allclose(to_books[i], expected, rtol=1e-7)
