"""The definitions again: float64 NumPy, loops, one row at a time, no JAX.

Slow and plain on purpose. p is the student, q the target, l = log(p / q).
"""

import math

import numpy as np


def softmax(logits, temperature=1.0):
  """Probabilities of one row."""
  z = np.asarray(logits, np.float64) / temperature
  e = np.exp(z - z.max())
  return e / e.sum()


def log_softmax(logits, temperature=1.0):
  """Log-probs of one row, exact also where the probability underflows."""
  z = np.asarray(logits, np.float64) / temperature
  total = 0.0
  for x in z:
    total += math.exp(x - z.max())
  return z - z.max() - math.log(total)


def reverse_kl(p, q):
  total = 0.0
  for a, b in zip(p, q, strict=True):
    if a > 0:
      total += a * (math.log(a) - math.log(b))
  return total


def forward_kl(p, q):
  return reverse_kl(q, p)


def generalized_jsd(p, q, beta):
  if beta == 0:
    return forward_kl(p, q)
  if beta == 1:
    return reverse_kl(p, q)
  m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
  return beta * reverse_kl(q, m) + (1 - beta) * reverse_kl(p, m)


def stop_gradient_reverse_kl(p, q, at=None):
  """Its log-ratio is frozen where the student was: at `at`, or at p itself."""
  total = 0.0
  for a, b, frozen in zip(p, q, p if at is None else at, strict=True):
    if frozen > 0:
      total += a * (math.log(frozen) - math.log(b))
  return total


def generalized_reverse_kl(p, q):
  return reverse_kl(p, q) - sum(p) + sum(q)


def generalized_forward_kl(p, q):
  return forward_kl(p, q) - sum(q) + sum(p)


def skew_forward_kl(p, q, alpha):
  m = [alpha * b + (1 - alpha) * a for a, b in zip(p, q, strict=True)]
  return reverse_kl(q, m)


def skew_reverse_kl(p, q, alpha):
  m = [alpha * a + (1 - alpha) * b for a, b in zip(p, q, strict=True)]
  return reverse_kl(p, m)


def alpha_divergence(p, q, alpha):
  total = 0.0
  for a, b in zip(p, q, strict=True):
    total += alpha * a + (1 - alpha) * b - a**alpha * b ** (1 - alpha)
  return total / (alpha * (1 - alpha))


def total_variation(p, q):
  total = 0.0
  for a, b in zip(p, q, strict=True):
    total += abs(a - b) / 2
  return total


def mixture(sides, weights):
  """Of rows of probabilities."""
  mean = []
  for v in range(len(sides[0])):
    mean.append(sum(w * q[v] for q, w in zip(sides, weights, strict=True)))
  return np.array(mean)


def log_linear(sides, weights):
  """Of rows of probabilities, none of them 0."""
  product = []
  for v in range(len(sides[0])):
    power = 1.0
    for q, w in zip(sides, weights, strict=True):
      power *= q[v] ** w
    product.append(power)
  return np.array(product) / sum(product)


def top(p, k):
  """Ids of the k largest, best first, ties to the smaller id."""
  return sorted(range(len(p)), key=lambda v: (-p[v], v))[:k]


def chosen(p, q, k, of):
  """Ids of a support, each once, in the order of its slots."""
  of_p, of_q = top(p, k), top(q, k)
  return {
    'student': of_p,
    'target': of_q,
    'union': of_p + [v for v in of_q if v not in of_p],
    'intersection': [v for v in of_p if v in of_q],
  }[of]


def restrict(p, q, support, tail):
  """Both sides on a support, with the tail's fate."""
  kept_p, kept_q = [p[v] for v in support], [q[v] for v in support]
  if tail == 'renormalize':
    kept_p = [x / sum(kept_p) for x in kept_p]
    kept_q = [x / sum(kept_q) for x in kept_q]
  if tail == 'bucket':
    rest = [v for v in range(len(p)) if v not in support]
    kept_p.append(sum(p[v] for v in rest))
    kept_q.append(sum(q[v] for v in rest))
  return kept_p, kept_q


# Gradients with respect to the student's logits, at temperature 1.


def grad_full_reverse_kl(p, q):
  kl = reverse_kl(p, q)
  return np.array(
    [a * (math.log(a / b) - kl) for a, b in zip(p, q, strict=True)]
  )


def grad_full_forward_kl(p, q):
  return np.asarray(p) - np.asarray(q)


def on_support(p, support, f):
  """Of sum f_v grad p_v over S: p_u (1_S f_u - sum over S of p_v f_v)."""
  mean = sum(p[v] * f[v] for v in support)
  return np.array(
    [p[u] * ((f[u] if u in support else 0) - mean) for u in range(len(p))]
  )


def grad_mass(p, support):
  """The gradient of the student's mass on the support."""
  return on_support(p, support, {v: 1.0 for v in support})
