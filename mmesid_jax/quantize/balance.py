"""Points to clusters of equal size at the least sum of distances.

A transport problem. Prices of the clusters, found on the device, make nearly all points choose what
they get at the optimum; the rest is moved along shortest paths between clusters, on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 60  # of the prices
WARM_STEPS = 20  # from prices that are nearly right
SHARPEST = 0.03  # softness at the last of them, of the mean gap between the two nearest clusters
TIE = 1e-4  # of the same gap: moves that differ by less count as equal


def balanced_assignment(
  distance_NC: np.ndarray, price_C: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Codes int64 [N], every one of floor(N / C) or ceil(N / C) points, and prices float64 [C].

  The sum of distances is the least that such sizes allow, up to a part of TIE a move. price_C: what
  an earlier call on nearly the same distances returned, to start from. Sources: Bertsekas 1991,
  chapter 5 (duality of assignment); Ahuja et al. 1993, section 9.7 (successive shortest paths).
  """
  N, C = distance_NC.shape
  if C == 1:
    return np.zeros(N, np.int64), np.zeros(1)
  first_C = np.zeros(C, np.float32) if price_C is None else np.float32(price_C)
  price_C, code_N, gap = _prices(distance_NC, first_C, price_C is not None)
  problem = _Transport(np.asarray(distance_NC), np.array(code_N), np.float64(price_C))
  problem.settle(tie=TIE * float(gap))
  return problem.code_N, problem.price_C


@jax.jit
def _prices(distance_NC: jax.Array, price_C: jax.Array, warm: jax.Array):
  """Prices under which nearest codes are of nearly equal size, these codes, and the mean gap.

  Sinkhorn's iteration for the prices alone, ever sharper: from the scale of whole distances (that
  of the gap for prices that are nearly right) down to a part of the gap.
  """
  N, C = distance_NC.shape
  least_N = distance_NC.min(1)
  others_NC = jnp.where(distance_NC <= least_N[:, None], jnp.inf, distance_NC)
  second_N = others_NC.min(1)
  gap = jnp.where(jnp.isfinite(second_N), second_N - least_N, 0).mean()
  gap = jnp.maximum(gap, 1e-30)
  spread = jnp.maximum((distance_NC.mean(1) - least_N).mean(), gap)
  softest, sharpest = jnp.where(warm, 0.3 * gap, 0.3 * spread), SHARPEST * gap
  steps = jnp.where(warm, WARM_STEPS, STEPS)

  def step(k, price_C):
    softness = softest * (sharpest / softest) ** (k / (steps - 1))
    score_NC = -(distance_NC + price_C) / softness
    log_share_NC = score_NC - jax.nn.logsumexp(score_NC, axis=1, keepdims=True)
    price_C += softness * (jax.nn.logsumexp(log_share_NC, axis=0) - jnp.log(N / C))
    return price_C - price_C.mean()

  price_C = jax.lax.fori_loop(0, steps, step, price_C)
  return price_C, nearest(distance_NC + price_C)[0], gap


def nearest(distance_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Codes int32 [B] of the least distances (the first of equals), and these; several times as fast
  as argmin on a CPU."""
  least_B = distance_BC.min(1)
  C = distance_BC.shape[1]
  code_B = jnp.where(distance_BC <= least_B[:, None], jnp.arange(C), C).min(1)
  return jnp.minimum(code_B, C - 1), least_B  # NaN is no code's: never out of range


class _Transport:
  """Clusters as the nodes of a graph whose edge a -> b costs what the cheapest point of a loses
  when it moves to b.

  Under the prices no chain of moves that returns to its start gains anything. Moving a point a hop
  along the cheapest path keeps that so; when sizes are within their bounds and no path from a large
  cluster to a small one gains either, no assignment within the bounds is cheaper.
  """

  def __init__(self, distance_NC: np.ndarray, code_N: np.ndarray, price_C: np.ndarray):
    self.distance_NC, self.code_N, self.price_C = distance_NC, code_N.astype(np.int64), price_C
    N, C = distance_NC.shape
    self.low, self.high = N // C, -(-N // C)
    self.size_C = np.bincount(code_N, minlength=C)
    order_N = np.argsort(code_N, kind="stable")
    self.members = np.split(order_N, np.cumsum(self.size_C)[:-1])
    self.cost_CC = np.full((C, C), np.inf)
    for c in range(C):
      self._price_moves(c)

  def settle(self, tie: float) -> None:
    """Moves until sizes are within their bounds and nothing is gained by another move."""
    while path := self._cheapest_path(tie):
      hops = list(zip(path, path[1:], strict=False))
      start, end = path[0], path[-1]
      wanted = min(
        self.size_C[start] - (self.high if self.size_C[start] > self.high else self.low),
        (self.low if self.size_C[end] < self.low else self.high) - self.size_C[end],
      )
      candidates = []
      for a, b in hops:
        points, loss = self.members[a], self._losses(a)[:, b]
        equal = np.flatnonzero(loss <= self.cost_CC[a, b] + tie)
        candidates.append(points[equal[np.argsort(loss[equal], kind="stable")]])
      count = min(wanted, *map(len, candidates))
      for (a, b), points in zip(hops, candidates, strict=True):
        moved = points[:count]
        self.code_N[moved] = b
        self.members[a] = np.setdiff1d(self.members[a], moved, assume_unique=True)
        self.members[b] = np.concatenate([self.members[b], moved])
      self.size_C[start] -= count
      self.size_C[end] += count
      for c in path:
        self._price_moves(c)

  def _losses(self, a: int) -> np.ndarray:
    """[members of a, C]: what each loses by moving."""
    own_MC = self.distance_NC[self.members[a]]
    return own_MC - own_MC[:, a : a + 1]

  def _price_moves(self, a: int) -> None:
    self.cost_CC[a] = self._losses(a).min(0) if self.size_C[a] else np.inf

  def _cheapest_path(self, tie: float) -> list[int]:
    """Clusters from one that must or may give to one that must or may take; empty when nothing must
    and nothing is gained. Lowers the prices so that every edge keeps a cost >= 0 under them."""
    over_C, under_C = self.size_C > self.high, self.size_C < self.low
    giving_C = over_C if over_C.any() else self.size_C > self.low
    taking_C = under_C if under_C.any() else self.size_C < self.high
    if not giving_C.any() or not taking_C.any():
      return []
    # Rounding must not make an edge negative: paths could run in circles.
    edge_CC = np.maximum(self.cost_CC + self.price_C - self.price_C[:, None], 0)
    far_C = np.where(giving_C, self.price_C, np.inf)
    before_C = np.full(len(far_C), -1)
    changed = np.flatnonzero(giving_C)
    while len(changed):  # Bellman and Ford
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
