"""How noisy each estimator of the reverse KL's gradient is.

The sampled token is unbiased and noisy; its exact mean as a baseline removes
noise at no cost; later log-ratios add noise; the whole vocabulary has none of
its own. The proximal target of TOP-D trades bias for little noise (arXiv
2605.07865, 2607.04751; Fu et al., arXiv 2603.25562, section 3).

Set-up: the student and the teacher of `topk_bias`, 24 gradients, each of 64 new
rollouts, the same for all estimators. Variance is the trace of the covariance,
of all parameters; the cosine is to the mean of the full vocabulary's.
"""

import json

import numpy as np

from founding.lab import matching, policy_gradient, top_k
from founding.probes import cosine, gradients, total_variance
from jopd.run.resolve import plain

SIGNATURE = (
  'variance: full < sampled with baseline < sampled < whole sequence',
  'the baseline leaves at most 0.6 of the variance of the sampled token',
  'TOP-D has less variance than the sampled token',
  'cosine to the full vocabulary: above 0.8 with the baseline, and baseline >'
  ' sampled > whole sequence',
)
SHOWN = ('variance', 'norm_of_mean', 'cosine')
REPLICAS = 24
PLAIN = dict(
  learning_rate=1.0,
  warmup_steps=0,
  lr_schedule='constant',
  max_grad_norm=0.0,
  optimizer=dict(name='sgd'),
)


def sampled_token(advantage='log_ratio', **settings) -> dict:
  """A policy gradient on the sampled token, as a setting."""
  return dict(match=policy_gradient(advantage, **settings))


def discounted(gamma: float) -> dict:
  """The sampled token with the log-ratios to come as its advantage."""
  return sampled_token(dict(name='discounted_return', gamma=gamma))


VARIANTS = {
  'full vocabulary': matching('reverse_kl'),
  'stop-gradient, teacher support': matching(
    'stop_gradient_reverse_kl', top_k('target', 'drop')
  ),
  'tail bucket, teacher support': matching(
    'reverse_kl', top_k('target', 'bucket')
  ),
  'sampled, baseline': sampled_token('centered_log_ratio'),
  'sampled': sampled_token(),
  'whole sequence': discounted(1.0),
  'TOP-D': sampled_token(
    target=dict(name='mixture', weights=dict(teacher=0.5, student=0.5))
  ),
}


def spread(
  lab, name: str, variants: dict, **how
) -> dict[str, dict[str, float]]:
  """The variance of each variant's gradient, and where its mean points.

  Kept in a folder of that name, and made again if a setting changes. `how`
  goes to `lab.distilling`.
  """
  configs = {v: lab.distilling(t, **how, **PLAIN) for v, t in variants.items()}
  settings = [json.dumps(plain(config)) for config in configs.values()]
  path = lab.folder / name / 'gradients.json'
  if path.is_file():
    kept = json.loads(path.read_text())
    if kept['settings'] == settings:
      return kept['rows']
  found = {v: gradients(c, replicas=REPLICAS) for v, c in configs.items()}
  rows = _spread(found)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(dict(settings=settings, rows=rows)))
  return rows


def _spread(found: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
  exact = np.mean(next(iter(found.values())), axis=0)
  return {
    name: dict(
      variance=total_variance(grads),
      norm_of_mean=float(np.linalg.norm(np.mean(grads, axis=0))),
      cosine=cosine(np.mean(grads, axis=0), exact),
    )
    for name, grads in found.items()
  }


def measure(lab) -> dict[str, dict[str, float]]:
  """Takes the gradients of each estimator."""
  return spread(lab, 'variance', VARIANTS)


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  variance = {name: row['variance'] for name, row in rows.items()}
  cosines = {name: row['cosine'] for name, row in rows.items()}
  order = (
    'full vocabulary',
    'sampled, baseline',
    'sampled',
    'whole sequence',
  )
  values = [variance[name] for name in order]
  return [
    values == sorted(values),
    variance['sampled, baseline'] <= 0.6 * variance['sampled'],
    variance['TOP-D'] < variance['sampled'],
    cosines['sampled, baseline'] > 0.8
    and cosines['sampled, baseline'] > cosines['sampled']
    and cosines['sampled'] > cosines['whole sequence'],
  ]
