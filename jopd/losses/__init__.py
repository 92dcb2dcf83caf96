"""Losses of on-policy distillation: pure functions of arrays.

Imports jax and jaxtyping, nothing else, so that any JAX code can use it:

  from jopd import losses

  terms = {'opd': losses.Term(losses.matching(losses.reverse_kl))}
  loss, metrics = losses.distill_loss_chunked(
    student_hidden, student_head, {'teacher': (teacher_hidden, teacher_head)},
    token, sampler_logp, terms, mask=mask, count=mask.sum())

Everything is in nats per token and float32, arguments come as (student,
target), and no gradient reaches a target. docs/losses.md tells which to take.
"""

from jopd.losses.chunked import distill_loss_chunked
from jopd.losses.credits import log_ratio
from jopd.losses.distributions import entropy, log_probs, pick
from jopd.losses.divergences import (
  forward_kl,
  generalized_jsd,
  reverse_kl,
  stop_gradient_reverse_kl,
)
from jopd.losses.penalties import k2, k3
from jopd.losses.reductions import sequence_mean, token_mean
from jopd.losses.stats import TokenStats, token_stats
from jopd.losses.supports import full, top_k
from jopd.losses.surrogates import clipped, reinforce
from jopd.losses.targets import teacher
from jopd.losses.terms import (
  Term,
  TokenBatch,
  distill_loss,
  matching,
  negative_log_likelihood,
  policy_gradient,
  sampled,
)
from jopd.losses.weights import uniform

__all__ = [
  'Term',
  'TokenBatch',
  'TokenStats',
  'clipped',
  'distill_loss',
  'distill_loss_chunked',
  'entropy',
  'forward_kl',
  'full',
  'generalized_jsd',
  'k2',
  'k3',
  'log_probs',
  'log_ratio',
  'matching',
  'negative_log_likelihood',
  'pick',
  'policy_gradient',
  'reinforce',
  'reverse_kl',
  'sampled',
  'sequence_mean',
  'stop_gradient_reverse_kl',
  'teacher',
  'token_mean',
  'token_stats',
  'top_k',
  'uniform',
]
