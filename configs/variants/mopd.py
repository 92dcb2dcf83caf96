"""One student of several teachers, each in its own domain (MOPD).

The teachers differ from plain OPD (arXiv 2606.30406): each domain has a teacher
and a term of its own. A term is the mean over the tokens of its domain, so that
long responses or many prompts of one domain do not outweigh the others (the
budgets of arXiv 2608.19098).

  jopd train --config=configs/variants/mopd.py:tiny --workdir=runs/mopd

Measured, tiny, three seeds: greedy accuracy 0.770, plain OPD from a mixture of
both teachers 0.444; intervals are in docs/variants.md. At its published size it
is not yet measured. Every teacher scores every row, also of other domains.
"""

import common

TINY = dict(sums=common.SUMS, rules=common.SHIFTS | dict(rule=3))


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on two builtin tasks."""
  config = common.mathematics(
    size,
    student='Qwen/Qwen2.5-1.5B-Instruct',
    sums='Qwen/Qwen2.5-Math-7B-Instruct',
    rules='Qwen/Qwen2.5-Coder-7B-Instruct',
  )
  domains = ('sums', 'rules')
  files = {
    name: dict(name='jsonl', path=f'data/{name}.jsonl') for name in domains
  }
  config.data = dict(name='blend', parts=files)
  config.stages = ('distil',)
  config.distil = common.distil(
    teachers={name: name for name in domains},
    loss={
      name: common.divergence(
        'reverse_kl',
        coef=0.5,
        target=dict(name='teacher', role=name),
        rows=name,
      )
      for name in domains
    },
  )
  if size == 'tiny':
    blend = lambda **changed: dict(
      name='blend', parts={name: TINY[name] | changed for name in domains}
    )
    lessons = {name: dict(data=TINY[name], steps=300) for name in domains}
    lessons['student'] = dict(data=blend(count=140))
    common.tiny(config, data=blend(), lessons=lessons)
    for name in domains:
      config.models[name].update(common.LARGE)
    config.eval_data = blend(count=128, split='test')
  return config
