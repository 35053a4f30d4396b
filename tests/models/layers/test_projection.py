import jax
import numpy as np
import pytest

from mmesid_jax.models.layers import projection
from mmesid_jax.models.layers.projection import product

J, D_IN, D_OUT = 37, 48, (3, 16)


def random_inputs(dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (J, D_IN), (D_IN, *D_OUT), (J, *D_OUT)
  return [jax.random.normal(k, shape).astype(dtype) for k, shape in zip(keys, shapes, strict=True)]


def exact(x, weight, gradient):
  """The product and the gradients of sum(gradient * product), in float64."""
  x, weight, gradient = (np.float64(np.float32(a)) for a in (x, weight, gradient))
  return (
    np.einsum("ja,anh->jnh", x, weight),
    np.einsum("jnh,anh->ja", gradient, weight),
    np.einsum("ja,jnh->anh", x, gradient),
  )


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2**-8), ("float32", 1e-6)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_product_and_its_gradients_are_exact_but_for_one_rounding(
  monkeypatch, platform, dtype, rounding
):
  monkeypatch.setattr(projection, "target_platform", lambda: platform)
  x, weight, gradient = random_inputs(dtype)
  y, backward = jax.vjp(product, x, weight)
  for found, expected in zip((y, *backward(gradient)), exact(x, weight, gradient), strict=True):
    assert found.dtype == dtype
    # and for the order of sums of some 48 products, each about 1
    np.testing.assert_allclose(np.float64(found), expected, rtol=rounding, atol=1e-4)


def test_bfloat16_on_a_cpu_is_multiplied_into_float32():
  """Which its matrix units can do; in the backward pass as well."""
  x, weight, gradient = random_inputs("bfloat16")
  step = jax.jit(lambda x, w, g: jax.vjp(product, x, w)[1](g))
  lines = step.lower(x, weight, gradient).as_text().splitlines()
  products = [line for line in lines if "dot_general" in line]
  assert products and all(
    line.split("->")[-1].rstrip().endswith("xf32>") and "bf16>, tensor" in line for line in products
  ), products
