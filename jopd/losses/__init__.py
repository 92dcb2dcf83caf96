"""Losses of on-policy distillation: pure functions of arrays.

Imports jax and jaxtyping, nothing else, so that any JAX code can use it:

  from jopd import losses

  terms = {'opd': losses.Term(losses.divergence(losses.reverse_kl))}
  loss, metrics = losses.distill_loss_chunked(
    student_hidden, student_head, {'teacher': (teacher_hidden, teacher_head)},
    token, sampler_logp, terms, mask=mask, count=mask.sum())

Everything is in nats per token and float32, arguments come as (student,
target), and no gradient reaches a target. docs/losses.md tells which to take.
"""

from jopd.losses.advantages import (
  centered_log_ratio,
  clip,
  discounted_return,
  future_mean,
  group_advantage,
  log_ratio,
  reward,
  scaled_advantage,
)
from jopd.losses.aggregation import fixed_length, sequence_mean, token_mean
from jopd.losses.chunked import distill_loss_chunked
from jopd.losses.distributions import entropy, log_probs, token_logp
from jopd.losses.divergences import (
  alpha_divergence,
  forward_kl,
  generalized_forward_kl,
  generalized_jsd,
  generalized_reverse_kl,
  reverse_kl,
  skew_forward_kl,
  skew_reverse_kl,
  stop_gradient_reverse_kl,
  total_variation,
)
from jopd.losses.gradient_check import (
  check_groups,
  check_objective,
  expected_gradients,
)
from jopd.losses.kl_estimators import k1, k2, k3
from jopd.losses.objectives import (
  divergence,
  kl_estimate,
  negative_log_likelihood,
  policy_gradient,
  preference,
)
from jopd.losses.supports import full, top_k
from jopd.losses.surrogates import ppo_clip, reinforce
from jopd.losses.targets import extrapolated, log_linear, mixture, teacher
from jopd.losses.terms import Term, distill_loss, term_masks, term_reads
from jopd.losses.token_stats import (
  Reads,
  Row,
  TokenBatch,
  TokenStats,
  group_reward_stats,
  reads,
  reads_of,
  rows_where,
  token_stats,
)
from jopd.losses.weights import (
  gate,
  importance,
  normalized,
  top_fraction,
  uniform,
)

__all__ = [
  'Reads',
  'Row',
  'Term',
  'TokenBatch',
  'TokenStats',
  'alpha_divergence',
  'centered_log_ratio',
  'check_groups',
  'check_objective',
  'clip',
  'discounted_return',
  'distill_loss',
  'distill_loss_chunked',
  'divergence',
  'entropy',
  'expected_gradients',
  'extrapolated',
  'fixed_length',
  'forward_kl',
  'full',
  'future_mean',
  'gate',
  'generalized_forward_kl',
  'generalized_jsd',
  'generalized_reverse_kl',
  'group_advantage',
  'group_reward_stats',
  'importance',
  'k1',
  'k2',
  'k3',
  'kl_estimate',
  'log_linear',
  'log_probs',
  'log_ratio',
  'mixture',
  'negative_log_likelihood',
  'normalized',
  'policy_gradient',
  'ppo_clip',
  'preference',
  'reads',
  'reads_of',
  'reinforce',
  'reverse_kl',
  'reward',
  'rows_where',
  'scaled_advantage',
  'sequence_mean',
  'skew_forward_kl',
  'skew_reverse_kl',
  'stop_gradient_reverse_kl',
  'teacher',
  'term_masks',
  'term_reads',
  'token_logp',
  'token_mean',
  'token_stats',
  'top_fraction',
  'top_k',
  'total_variation',
  'uniform',
]
