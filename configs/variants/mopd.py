"""One student of several teachers, each in its own domain (MOPD).

From plain OPD it differs in the teachers (arXiv 2606.30406): each domain has
its own, and a term of its own. A term is the mean over its domain's tokens, so
that long responses or many prompts of one do not outweigh the others (the
budgets of arXiv 2608.19098).

  jopd train --config=configs/variants/mopd.py:tiny --workdir=runs/mopd

Results: docs/variants.md. Every teacher scores every row, also those of other
domains.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size,
    student='Qwen/Qwen2.5-1.5B-Instruct',
    sums='Qwen/Qwen2.5-Math-7B-Instruct',
    rules='Qwen/Qwen2.5-Coder-7B-Instruct',
  )
  parts = {
    name: dict(name='jsonl', path=f'data/{name}.jsonl')
    for name in ('sums', 'rules')
  }
  config.data = dict(name='blend', parts=parts)
  config.stages = ('distil',)
  match = dict(objective='divergence', divergence='reverse_kl', coef=0.5)
  config.distil = configs.stage(
    teachers={name: name for name in parts},
    loss={
      name: match | dict(target=dict(name='teacher', role=name), rows=name)
      for name in parts
    },
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    rules = dict(name='shift', count=8192, length=4, modulus=10, rule=3)
    parts = dict(sums=presets.SUMS, rules=rules)
    tests = {n: x | dict(count=128, split='test') for n, x in parts.items()}
    lessons = {n: dict(data=x, steps=300) for n, x in parts.items()}
    few = {n: x | dict(count=140) for n, x in parts.items()}
    lessons['student'] = dict(data=dict(name='blend', parts=few))
    presets.tiny(config, data=dict(name='blend', parts=parts), lessons=lessons)
    for name in parts:
      config.models[name].update(presets.LARGE)
    config.eval_data = dict(name='blend', parts=tests)
  return config
