"""pass@k against enumeration, intervals against exact binomials."""

import itertools
import math

import numpy as np
import pytest

from jopd.evaluate.statistics import (
  mean_interval,
  pass_at_k,
  seeds_interval,
  wilson_interval,
)


def test_pass_at_k_counts_the_subsets_with_a_right_answer():
  # Kills: the plug-in 1 - (1 - c/n)^k, which is 0.75 and not 5/6 for 4, 2, 2.
  for n in range(1, 7):
    for c in range(n + 1):
      for k in range(1, n + 1):
        samples = [True] * c + [False] * (n - c)
        draws = [any(draw) for draw in itertools.combinations(samples, k)]
        expected = sum(draws) / len(draws)
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_unbiased():
  # Kills: any estimator whose mean over the n samples is not 1 - (1 - p)^k.
  n, k, p = 8, 3, 0.2
  c = np.arange(n + 1)
  chance = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c]
  mean = np.sum(chance * pass_at_k(n, c, k))
  assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-14)


def test_pass_at_k_of_many_prompts_and_samples_at_once():
  # Kills: factorials, which overflow at n = 171, and prompts mixed up.
  n = np.array([1000, 2000, 10])
  c = np.array([3, 0, 10])
  k = 10
  expected = [
    1 - math.comb(int(a - b), k) / math.comb(int(a), k)
    for a, b in zip(n, c, strict=True)
  ]
  np.testing.assert_allclose(pass_at_k(n, c, k), expected, rtol=1e-12)
  assert pass_at_k(n, c, k)[1] == 0 and pass_at_k(n, c, k)[2] == 1


@pytest.mark.parametrize(
  'n, c, k', [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]
)
def test_pass_at_k_refuses_the_impossible(n, c, k):
  # Kills: a silent 1.0 for k > n.
  with pytest.raises(ValueError, match='expected'):
    pass_at_k(n, np.array([c]), k)


def test_wilson_ends_solve_the_score_equation():
  # Kills: p +- z sqrt(p (1 - p) / n), whose ends do not.
  low, high = wilson_interval(7, 20, z=2.0)
  for end in (low, high):
    assert abs(7 / 20 - end) == pytest.approx(
      2.0 * math.sqrt(end * (1 - end) / 20), rel=1e-12
    )
  assert low < 7 / 20 < high


def test_wilson_has_a_width_where_all_or_none_succeed():
  # Kills: "100 % +- 0". The far end is z^2 / (n + z^2) away, by hand.
  z2 = 1.96**2
  assert wilson_interval(0, 10) == pytest.approx((0, z2 / (10 + z2)))
  assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1))
  assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1


def test_wilson_covers_the_truth_nineteen_times_in_twenty():
  # Kills: z of another level, and n - 1 for n. Exact, by summing the binomial.
  n = 60
  covered = []
  for p in np.linspace(0.02, 0.98, 97):
    chance = 0.0
    for c in range(n + 1):
      low, high = wilson_interval(c, n)
      if low <= p <= high:
        chance += math.comb(n, c) * p**c * (1 - p) ** (n - c)
    covered.append(chance)
  assert np.mean(covered) == pytest.approx(0.95, abs=0.006)
  assert min(covered) > 0.88


@pytest.mark.parametrize('successes, trials', [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_the_impossible(successes, trials):
  # Kills: a math domain error that names neither number.
  with pytest.raises(ValueError, match='got'):
    wilson_interval(successes, trials)


def coverage(interval, *, prompts, samples, tries=2000):
  """How often an interval over prompts of uniform difficulty contains 1/2."""
  rng = np.random.default_rng(0)
  rates = rng.uniform(size=(tries, prompts))
  values = rng.binomial(samples, rates) / samples
  ends = np.array([interval(row) for row in values])
  return np.mean((ends[:, 0] <= 0.5) & (0.5 <= ends[:, 1]))


def test_mean_interval_takes_the_prompt_as_the_unit():
  # Kills: 30 prompts x 16 samples taken for 480 trials, which says 95 % and
  # covers 58 %.
  settings = dict(prompts=30, samples=16)
  ours = coverage(lambda row: mean_interval(row)[1:], **settings)
  pooled = coverage(lambda row: wilson_interval(row.sum(), 30), **settings)
  naive = coverage(lambda row: wilson_interval(16 * row.sum(), 480), **settings)
  assert ours == pytest.approx(0.95, abs=0.02)
  assert naive < 0.65
  assert pooled > 0.99  # one trial per prompt wastes the samples


def test_mean_interval_of_single_samples_is_wilsons():
  # Kills: a variance with the wrong denominator.
  values = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0, 0.0])
  mean, low, high = mean_interval(values)
  assert mean == pytest.approx(0.3)
  assert (low, high) == pytest.approx(wilson_interval(0.3 * 9, 9))


@pytest.mark.parametrize('rate', [0.0, 1.0, 1 / 3])
def test_mean_interval_of_equal_rates_is_not_a_point(rate):
  # Kills: "0 +- 0" on a set too hard to solve, and 0/0.
  mean, low, high = mean_interval(np.full(12, rate))
  assert mean == pytest.approx(rate)
  assert (low, high) == pytest.approx(wilson_interval(12 * rate, 12))
  assert mean_interval([rate])[1:] == pytest.approx(wilson_interval(rate, 1))


@pytest.mark.parametrize('values', [[], [[0.5]], [1.5], [float('nan')]])
def test_mean_interval_refuses_what_is_no_rate(values):
  # Kills: rewards outside [0, 1] given a nonsense interval.
  with pytest.raises(ValueError, match='expected'):
    mean_interval(values)


# Quantiles of Student's t from printed tables: 4.303 for 2 degrees of freedom,
# 2.571 for 5, 2.262 for 9, 2.045 for 29. Kills the normal's 1.96, n for n - 1,
# and an expansion with a wrong term.
@pytest.mark.parametrize(
  'free, quantile', [(2, 4.303), (5, 2.571), (9, 2.262), (29, 2.045)]
)
def test_an_interval_over_seeds_is_students(free, quantile):
  values = np.arange(free + 1.0)
  mean, low, high = seeds_interval(values)
  half = quantile * np.std(values, ddof=1) / np.sqrt(free + 1)
  assert mean == free / 2
  np.testing.assert_allclose([high - mean, mean - low], half, rtol=2e-3)


def test_one_seed_has_no_interval():
  with pytest.raises(ValueError, match='needs at least two seeds, got 1'):
    seeds_interval([0.9])
