"""Answers as if the cue had not been there (OPCT).

From plain OPD it differs in who reads what (arXiv 2605.21834): the student a
prompt in which a wrong answer is suggested, its frozen initial self the clean
one; the credit of a token is the discounted sum of the log-ratios to come. With
gamma 0 it is plain OPD between the two prompts. Evaluations suggest too.

  jopd train --config=configs/variants/opct.py:tiny --workdir=runs/opct

Results: docs/variants.md. Coefficient, gamma and temperature are those of a
reproduction, the cue is ours. With ':tiny' the student starts far from its
clean self, and it fails; plain OPD between the two prompts succeeds.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-8B')
  config.stages = ('distil',)
  numbers = tuple(map(str, range(100)))
  config.context = dict(name='with_suggestion', among=numbers)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher='same'),
    max_teacher_prompt_tokens=1024,
    loss=dict(
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage=dict(name='discounted_return', gamma=0.9),
        old_policy='sampler',
        coef=2.0,
      )
    ),
    rollout=dict(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0),
    group_size=4,
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    clean = dict(data=presets.SUMS, steps=300, lr_schedule='cosine')
    clean |= dict(context=dict(name='same'))
    presets.tiny(config, lessons=dict(student=clean))
    config.context = dict(
      name='with_suggestion', template='{prompt} {suggestion}'
    )
  return config
