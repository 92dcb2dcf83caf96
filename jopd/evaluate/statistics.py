"""Statistics of evaluation: pass@k and intervals. NumPy only."""

import math

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.96  # two-sided 95 % of a normal distribution


def pass_at_k(
  num_samples: int | np.ndarray, num_correct: int | np.ndarray, k: int
) -> np.ndarray:
  """Unbiased pass@k per prompt: 1 - C(n - c, k) / C(n, k).

  The probability that at least one of k samples, drawn without replacement from
  the n, is correct. Its expectation is 1 - (1 - p)^k; the plug-in estimate
  1 - (1 - c/n)^k is biased low. Average the result over prompts.

  Args:
    num_samples: n, int, [*prompts] or one number for all.
    num_correct: c, int, [*prompts], 0 <= c <= n.
    k: 1 <= k <= n. k = 1 gives c / n.

  Returns:
    [*prompts] float64 in [0, 1].

  Numerics: a product of k factors (n - c - i) / (n - i) in [0, 1]; no factorial
    is formed, so nothing overflows. Exactly 0 for c = 0, 1 for c > n - k.
  Raises: ValueError when c is outside [0, n] or k outside [1, n].
  References: Chen et al., Evaluating Large Language Models Trained on Code,
    arXiv 2107.03374, equation 1.

  Example:
    >>> float(pass_at_k(4, 2, k=2))  # 1 - C(2,2)/C(4,2) = 1 - 1/6
    0.8333333333333334
  """
  n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
  if np.any(c < 0) or np.any(c > n):
    raise ValueError(
      f'expected 0 <= num_correct <= num_samples, got {num_correct} of '
      f'{num_samples}'
    )
  if k < 1 or np.any(k > n):
    raise ValueError(
      f'expected 1 <= k <= num_samples, got k={k} for {num_samples} samples; '
      'use more samples or a smaller k'
    )
  i = np.arange(k)
  wrong_left = np.maximum((n - c)[..., None] - i, 0)
  return np.asarray(1.0 - np.prod(wrong_left / (n[..., None] - i), axis=-1))


def wilson_interval(
  successes: int | float, trials: int | float, *, z: float = Z95
) -> tuple[float, float]:
  """Wilson's score interval of a proportion: (low, high) within [0, 1].

  All p with |p_hat - p| <= z sqrt(p (1 - p) / n). For greedy accuracy, where
  one prompt is one trial. Unlike p_hat +- z s it has a positive width when all
  or no trials succeed, and good coverage with few trials.

  Args:
    successes: between 0 and trials; may be fractional, see `mean_interval`.
    trials: more than 0.
    z: half-width in standard deviations.

  Raises: ValueError when trials <= 0 or successes outside [0, trials].
  References: E. B. Wilson, JASA 22 (1927) 209-212.

  Example:
    >>> low, high = wilson_interval(0, 10)  # (0, z^2 / (n + z^2))
    >>> round(low, 4), round(high, 4)
    (0.0, 0.2775)
  """
  if not trials > 0 or not 0 <= successes <= trials:
    raise ValueError(
      'expected 0 <= successes <= trials and trials > 0, got '
      f'{successes} of {trials}'
    )
  p = successes / trials
  shrink = 1 + z**2 / trials
  centre = (p + z**2 / (2 * trials)) / shrink
  half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / shrink
  # Rounding may put the ends slightly outside of [0, 1].
  low = 0.0 if p == 0 else max(0.0, centre - half)
  high = 1.0 if p == 1 else min(1.0, centre + half)
  return low, high


def mean_interval(
  values: ArrayLike, *, z: float = Z95
) -> tuple[float, float, float]:
  """Mean over prompts of their success rates (avg@k), with its interval.

  Samples of one prompt are not independent trials: counting 30 prompts of 16
  samples as 480 trials gives an interval that is too narrow (about 2.4 times,
  with rates uniform in [0, 1]). The variance of the mean over P prompts is
  s^2 / P, with s^2 the variance of `values`. Wilson's interval is taken with
  the effective number of trials n with m (1 - m) / n = s^2 / P, so the ends
  stay in [0, 1]. Equal rates count as one trial per prompt. With one sample per
  prompt this is Wilson's interval of P - 1 trials.

  Args:
    values: [P] success rates in [0, 1], one per prompt.
    z: half-width in standard deviations.

  Returns:
    (mean, low, high), for new prompts of the same distribution.

  Raises: ValueError when values is empty, not one-dimensional or outside
    [0, 1].
  References: E. L. Korn, B. I. Graubard, Survey Methodology 24 (1998) 193-201
    (effective sample size in an interval of a proportion).
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size:
    raise ValueError(
      f'expected one success rate per prompt, got shape {values.shape}'
    )
  if not np.all((values >= 0) & (values <= 1)):
    raise ValueError(
      'expected success rates in [0, 1], got values from '
      f'{values.min()} to {values.max()}'
    )
  prompts, mean = values.size, float(np.mean(values))
  if np.all(values == values[0]):
    trials = float(prompts)
  else:
    variance = float(np.var(values, ddof=1))
    trials = prompts * mean * (1 - mean) / variance
  return mean, *wilson_interval(mean * trials, trials, z=z)


def seeds_interval(values: ArrayLike) -> tuple[float, float, float]:
  """Mean over seeds with Student's interval of 95 %: (mean, low, high).

  For a result of whole runs, or a difference between two runs of one seed.

  Args:
    values: one per seed, at least two.

  Returns:
    (mean, low, high), not clipped to a range.

  Raises: ValueError for fewer than two values.
  References: Student, The Probable Error of a Mean, Biometrika 6 (1908); the
    quantile by the expansion in Abramowitz and Stegun, 26.7.5, from five
    degrees of freedom on.

  Example: deviation 0.1 of three values, 4.303 * 0.1 / sqrt(3) = 0.248.
    >>> [round(x, 3) for x in seeds_interval([0.8, 0.9, 1.0])]
    [0.9, 0.652, 1.148]
  """
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    raise ValueError(f'an interval needs at least two seeds, got {len(values)}')
  mean = float(values.mean())
  half = _student(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return mean, mean - float(half), mean + float(half)


def _student(degrees: int) -> float:
  """The quantile 0.975 of Student's t distribution."""
  small = (12.7062, 4.3027, 3.1824, 2.7764)
  if degrees <= len(small):
    return small[degrees - 1]
  z = Z95
  first = (z**3 + z) / 4
  second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
  third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
  return z + first / degrees + second / degrees**2 + third / degrees**3
