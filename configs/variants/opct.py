"""Responses as if a misleading cue were absent (OPCT).

The prompts differ from plain OPD (arXiv 2605.21834): the student's contains a
suggestion of a wrong answer, that of its frozen initial self does not. The
advantage of a token is the discounted sum of the log-ratios from it on. With
gamma 0 it is OPD by the sampled token between the two prompts. Evaluations use
prompts with a suggestion, too.

  jopd train --config=configs/variants/opct.py:tiny --workdir=runs/opct

Measured, tiny, three seeds: greedy accuracy 0.000, the sampled token and plain
OPD 1.000 (docs/variants.md): there the student starts far from its clean self.
At its published size it is not yet measured. Coefficient, gamma and temperature
are those of a reproduction; the cue is ours.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  clean = dict(
    data=common.SUMS,
    context=dict(name='same'),
    steps=300,
    lr_schedule='cosine',
  )
  config = common.opd(
    size,
    student='Qwen/Qwen3-8B',
    teacher='',
    lessons=dict(student=clean),
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher='same'),
    max_teacher_prompt_tokens=1024 if size == 'full' else 48,
    loss=dict(
      advantage=common.policy_gradient(
        dict(name='discounted_return', gamma=0.9),
        old_policy='sampler',
        coef=2.0,
      )
    ),
    rollout=dict(temperature=0.7),
    group_size=4,
  )
  numbers = tuple(str(number) for number in range(100))
  config.context = (
    dict(name='with_suggestion', among=numbers)
    if size == 'full'
    else dict(name='with_suggestion', template='{prompt} {suggestion}')
  )
  return config
