"""Assigns points to clusters of equal size with the least sum of distances: a transport problem.

The device computes prices of the clusters, with which nearly all points choose their cluster of the
optimum. The host then moves the other points along shortest paths between clusters.
"""

import jax
import jax.numpy as jnp
import numpy as np

COOLING = 0.89  # softness of an iteration for the prices, as a fraction of the one before
# A point's gap is between its distances to the two nearest clusters.
SHARPEST = 0.03  # softness of the last iteration, as a fraction of a small gap
SMALL = 0.1  # share of the gaps that are smaller: near-duplicates must be told apart too
ROUNDING = 2e-7  # of distances, as a fraction of the mean one; no softness is below it
TIE = 1e-4  # moves whose costs differ by less than this fraction of the mean gap count as equal


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
  (from that of the mean gap if `warm`, when price_C is nearly right) to SHARPEST of a small gap.
  """
  E, C = distance_EC.shape
  least_E = distance_EC.min(1)
  others_EC = jnp.where(distance_EC <= least_E[:, None], jnp.inf, distance_EC)
  second_E = others_EC.min(1)
  gap_E = jnp.where(jnp.isfinite(second_E), second_E - least_E, 0)
  gap = jnp.maximum(gap_E.mean(), 1e-30)
  small = jnp.nan_to_num(jnp.nanquantile(jnp.where(gap_E > 0, gap_E, jnp.nan), SMALL), nan=gap)
  spread = jnp.maximum((distance_EC.mean(1) - least_E).mean(), gap)
  softest = jnp.where(warm, 0.3 * gap, 0.3 * spread)
  sharpest = jnp.maximum(SHARPEST * jnp.minimum(small, gap), ROUNDING * distance_EC.mean())
  sharpest = jnp.clip(sharpest, 1e-30, softest)
  steps = 2 + jnp.int32(jnp.log(sharpest / softest) / jnp.log(COOLING))
  past_least_EC = distance_EC - least_E[:, None]  # more digits for the near clusters

  def step(k, price_C):
    softness = softest * (sharpest / softest) ** (k / (steps - 1))
    score_EC = -(past_least_EC + price_C) / softness
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
    while paths := self._cheapest_paths(tie):
      for path in paths:
        self._move_along(path, tie)

  def _move_along(self, path: list[int], tie: float) -> None:
    """Moves as many points along a path as cost the same, as far as the sizes of its ends go."""
    edges = list(zip(path, path[1:], strict=False))
    start, end = path[0], path[-1]
    most = min(
      self.size_C[start] - (self.high if self.size_C[start] > self.high else self.low),
      (self.low if self.size_C[end] < self.low else self.high) - self.size_C[end],
    )
    candidates = []
    for a, b in edges:
      points = self.members[a]
      cost = self.distance_EC[points, b] - self.distance_EC[points, a]
      cheapest = np.flatnonzero(cost <= self.cost_CC[a, b] + tie)
      candidates.append(points[cheapest[np.argsort(cost[cheapest], kind="stable")]])
    count = min(most, *map(len, candidates))
    moves = [(a, b, points[:count]) for (a, b), points in zip(edges, candidates, strict=True)]
    for _, b, moved in moves:
      self.code_E[moved] = b
    for a, b, moved in moves:
      left = self.members[a]
      self.members[a] = left[self.code_E[left] == a]
      self.members[b] = np.concatenate([self.members[b], moved])
    self.size_C[start] -= count
    self.size_C[end] += count
    for a, b, moved in moves:
      self._update_costs(a, self._costs_of_moving(a, moved).min(0))
      self.cost_CC[b] = np.minimum(self.cost_CC[b], self._costs_of_moving(b, moved).min(0))

  def _costs_of_moving(self, a: int, points: np.ndarray) -> np.ndarray:
    """Costs [E, C]: what moving each of the points away from a adds to the sum of distances."""
    own_EC = self.distance_EC[points]
    return own_EC - own_EC[:, a : a + 1]

  def _update_costs(self, a: int, gone_C: np.ndarray | None = None) -> None:
    """Computes the edges from a again: all, or those whose cheapest point may be gone.

    gone_C: least costs of the points that a had, so that a move does not read all of its points.
    """
    if not len(self.members[a]):
      self.cost_CC[a] = np.inf
    elif gone_C is None:
      self.cost_CC[a] = self._costs_of_moving(a, self.members[a]).min(0)
    else:
      stale = np.flatnonzero(gone_C <= self.cost_CC[a])
      points = self.members[a]
      distances = self.distance_EC[np.ix_(points, stale)]
      self.cost_CC[a, stale] = (distances - self.distance_EC[points, a][:, None]).min(0)

  def _cheapest_paths(self, tie: float) -> list[list[int]]:
    """Cheapest paths from clusters that must or may give a point to ones that must or may take one.

    No cluster is on two of them, so moving points along one changes no other. Empty when no cluster
    must give or take and no path lowers the sum. Lowers the prices so that every edge keeps a cost
    of at least 0 with them, and those of the paths have 0.
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
    must = over_C.any() or under_C.any()
    ends = np.flatnonzero(np.isfinite(gain_C) if must else gain_C < -tie)
    paths, used = [], set()
    for end in ends[np.argsort(gain_C[ends], kind="stable")].tolist():
      path = [end]
      while path[-1] not in used and before_C[path[-1]] >= 0:
        path.append(int(before_C[path[-1]]))
      if path[-1] not in used:
        paths.append(path[::-1])
        used.update(path)
    if paths:
      self.price_C = self.price_C - np.minimum(far_C, max(far_C[path[-1]] for path in paths))
    return paths
