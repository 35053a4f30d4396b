"""Assigns points to clusters of equal size with the least sum of distances: a transport problem.

The device computes prices of the clusters, with which nearly all points choose their cluster of the
optimum. The host then moves the other points along shortest paths between clusters.
"""

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 60  # iterations for the prices
WARM_STEPS = 20  # iterations that start from nearly right prices
# As fractions of the mean gap, which is between the distances to the two nearest clusters:
SHARPEST = 0.03  # softness of the last iteration
TIE = 1e-4  # moves whose costs differ by less count as equal


def balanced_assignment(
  distance_EC: np.ndarray, price_C: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Codes int64 [E], each of floor(E / C) or ceil(E / C) points, and prices float64 [C].

  The sum of distances is the least for such sizes, up to TIE of the mean gap per move. price_C: the
  prices that an earlier call returned for nearly the same distances, to start from. Sources:
  Bertsekas 1991, chapter 5 (duality of assignment); Ahuja et al. 1993, section 9.7 (successive
  shortest paths).
  """
  E, C = distance_EC.shape
  if C == 1:
    return np.zeros(E, np.int64), np.zeros(1)
  first_C = np.zeros(C, np.float32) if price_C is None else np.float32(price_C)
  price_C, code_E, gap = _prices(distance_EC, first_C, price_C is not None)
  problem = _Transport(np.asarray(distance_EC), np.array(code_E), np.float64(price_C))
  problem.settle(tie=TIE * float(gap))
  return problem.code_E, problem.price_C


@jax.jit
def _prices(distance_EC: jax.Array, price_C: jax.Array, warm: jax.Array):
  """Prices for which the nearest codes have nearly equal sizes, these codes, and the mean gap.

  Sinkhorn's iteration for the prices only. Its softness decreases from the scale of the distances
  (from that of the gap if `warm`, when price_C is nearly right) to SHARPEST of the gap.
  """
  E, C = distance_EC.shape
  least_E = distance_EC.min(1)
  others_EC = jnp.where(distance_EC <= least_E[:, None], jnp.inf, distance_EC)
  second_E = others_EC.min(1)
  gap = jnp.where(jnp.isfinite(second_E), second_E - least_E, 0).mean()
  gap = jnp.maximum(gap, 1e-30)
  spread = jnp.maximum((distance_EC.mean(1) - least_E).mean(), gap)
  softest, sharpest = jnp.where(warm, 0.3 * gap, 0.3 * spread), SHARPEST * gap
  steps = jnp.where(warm, WARM_STEPS, STEPS)

  def step(k, price_C):
    softness = softest * (sharpest / softest) ** (k / (steps - 1))
    score_EC = -(distance_EC + price_C) / softness
    log_share_EC = score_EC - jax.nn.logsumexp(score_EC, axis=1, keepdims=True)
    price_C += softness * (jax.nn.logsumexp(log_share_EC, axis=0) - jnp.log(E / C))
    return price_C - price_C.mean()

  price_C = jax.lax.fori_loop(0, steps, step, price_C)
  return price_C, nearest_codes(distance_EC + price_C)[0], gap


def nearest_codes(distance_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Codes int32 [B] with the least distances (the first of equals), and these distances [B].

  On a CPU this is several times as fast as argmin.
  """
  least_B = distance_BC.min(1)
  C = distance_BC.shape[1]
  code_B = jnp.where(distance_BC <= least_B[:, None], jnp.arange(C), C).min(1)
  return jnp.minimum(code_B, C - 1), least_B  # in range for NaN too


class _Transport:
  """Graph of clusters; the cost of edge a -> b is the least that moving a point of a to b adds.

  With the prices, no cycle of moves lowers the sum of distances. Moving points along a cheapest
  path keeps this true. When all sizes are within their bounds, and no path from a larger cluster
  to a smaller one lowers the sum either, no assignment within the bounds is cheaper.
  """

  def __init__(self, distance_EC: np.ndarray, code_E: np.ndarray, price_C: np.ndarray):
    self.distance_EC, self.code_E, self.price_C = distance_EC, code_E.astype(np.int64), price_C
    E, C = distance_EC.shape
    self.low, self.high = E // C, -(-E // C)
    self.size_C = np.bincount(code_E, minlength=C)
    order_E = np.argsort(code_E, kind="stable")
    self.members = np.split(order_E, np.cumsum(self.size_C)[:-1])
    self.cost_CC = np.full((C, C), np.inf)
    for c in range(C):
      self._update_costs(c)

  def settle(self, tie: float) -> None:
    """Moves points until sizes are within their bounds and no path gains more than `tie`."""
    while path := self._cheapest_path(tie):
      edges = list(zip(path, path[1:], strict=False))
      start, end = path[0], path[-1]
      most = min(
        self.size_C[start] - (self.high if self.size_C[start] > self.high else self.low),
        (self.low if self.size_C[end] < self.low else self.high) - self.size_C[end],
      )
      candidates = []
      for a, b in edges:
        points, cost = self.members[a], self._costs_of_moving(a)[:, b]
        cheapest = np.flatnonzero(cost <= self.cost_CC[a, b] + tie)
        candidates.append(points[cheapest[np.argsort(cost[cheapest], kind="stable")]])
      count = min(most, *map(len, candidates))
      for (a, b), points in zip(edges, candidates, strict=True):
        moved = points[:count]
        self.code_E[moved] = b
        self.members[a] = np.setdiff1d(self.members[a], moved, assume_unique=True)
        self.members[b] = np.concatenate([self.members[b], moved])
      self.size_C[start] -= count
      self.size_C[end] += count
      for c in path:
        self._update_costs(c)

  def _costs_of_moving(self, a: int) -> np.ndarray:
    """Costs [members of a, C]: what moving each of them adds to the sum of distances."""
    own_EC = self.distance_EC[self.members[a]]
    return own_EC - own_EC[:, a : a + 1]

  def _update_costs(self, a: int) -> None:
    self.cost_CC[a] = self._costs_of_moving(a).min(0) if self.size_C[a] else np.inf

  def _cheapest_path(self, tie: float) -> list[int]:
    """The cheapest path from a cluster that must or may give a point to one that must or may take.

    Empty when no cluster must give or take and no path lowers the sum. Lowers the prices so that
    every edge keeps a cost of at least 0 with them.
    """
    over_C, under_C = self.size_C > self.high, self.size_C < self.low
    giving_C = over_C if over_C.any() else self.size_C > self.low
    taking_C = under_C if under_C.any() else self.size_C < self.high
    if not giving_C.any() or not taking_C.any():
      return []
    # Rounding must not make an edge negative, or a path could become a cycle.
    edge_CC = np.maximum(self.cost_CC + self.price_C - self.price_C[:, None], 0)
    far_C = np.where(giving_C, self.price_C, np.inf)
    before_C = np.full(len(far_C), -1)
    changed = np.flatnonzero(giving_C)
    while len(changed):  # Bellman-Ford
      through = far_C[changed, None] + edge_CC[changed]
      best, column = through.argmin(0), np.arange(len(far_C))
      nearer = through[best, column] < far_C
      far_C = np.where(nearer, through[best, column], far_C)
      before_C = np.where(nearer, changed[best], before_C)
      changed = np.flatnonzero(nearer)
    gain_C = np.where(taking_C, far_C - self.price_C, np.inf)
    end = int(gain_C.argmin())
    if not over_C.any() and not under_C.any() and gain_C[end] >= -tie:
      return []
    self.price_C = self.price_C - np.minimum(far_C, far_C[end])
    path = [end]
    while before_C[path[0]] >= 0:
      path.insert(0, int(before_C[path[0]]))
    return path
