"""A self-teacher that knows more teaches a shared rule, and no private one.

The student is pulled to the average of its teacher over all hints that the
teacher may read. A rule that all examples share survives this; of rules that
differ from example to example it leaves an average that fits none, and not even
itself (Zhu et al., The Many Faces of On-Policy Distillation, arXiv 2605.11182).

Set-up: numbers plus a rule modulo 10, which half of the prompts of pre-training
contain. Then the model distils itself: the student reads prompts without the
rule, its frozen copy reads the answer, which is the rule. The runs differ by
their data alone: one rule for all examples, or a fresh one for each.
"""

from founding.lab import LARGE, matching
from founding.probes import answers, share
from jopd.run import config as configs

SIGNATURE = (
  'before: right below 0.3, consistent above 0.9',
  'shared rule, reverse KL: right above 0.95, KL below 0.05 nats per token',
  'shared rule, forward KL: the same',
  'fresh rules, reverse KL: right at most 0.25, KL above 0.5, consistent below'
  ' 0.2',
  'fresh rules, forward KL: right at most 0.25, KL above 0.5, consistent below'
  ' 0.5',
)
SHOWN = (
  'right',
  'consistent',
  'consistent_sampled',
  'reverse_kl_before',
  'reverse_kl_after',
)
RULES = dict(name='shift', count=8192, length=4, modulus=10)
HINTED = dict(name='with_answer', template='{answer} + {prompt}')


def measure(lab) -> dict[str, dict[str, float]]:
  """Pre-trains, then distils with each rule and each direction."""
  test = RULES | dict(count=256, split='test', rule=3)
  start = lab.sft(
    'rules',
    LARGE,
    run=dict(
      data=RULES | dict(hint_fraction=0.5),
      eval_data=test | dict(hint_fraction=1.0),
    ),
    steps=700,
    lr_schedule='cosine',
  )
  rows = {
    'before, hinted': _graded(start, test | dict(hint_fraction=1.0)),
    'before': _graded(start, test),
  }
  for kind, rule in (('shared rule', 3), ('fresh rules', None)):
    data, prompts = RULES | dict(rule=rule), test | dict(rule=rule)
    for direction in ('reverse_kl', 'forward_kl'):
      config = lab.config(data=data, eval_data=prompts)
      config.models.student = dict(path=start)
      config.stages = ('distil',)
      config.distil = configs.stage(
        teachers=dict(teacher='student'),
        teacher_contexts=dict(teacher=HINTED),
        max_teacher_prompt_tokens=20,
        loss=matching(direction),
        steps=120,
        learning_rate=1e-3,
        warmup_steps=10,
      )
      record = lab.run(f'opsd/{kind}, {direction}', config)
      row = record.row()
      kl = {n: row[n] for n in ('reverse_kl_before', 'reverse_kl_after')}
      rows[f'{kind}, {direction}'] = _graded(record.model, prompts) | kl
  return rows


def _graded(folder: str, data: dict) -> dict[str, float]:
  """How many answers are right, and how many follow some rule at all."""
  found = list(answers(folder, data))
  drawn = answers(folder, data, temperature=1.0)
  return dict(
    right=share(found, lambda example, text: text == example.response),
    consistent=share(found, _is_consistent),
    consistent_sampled=share(drawn, _is_consistent),
  )


def _is_consistent(example, text: str) -> bool:
  """Whether one rule explains all numbers of an answer, and is stated."""
  prompt = example.messages[-1]['content'].rpartition('+ ')[2].split()
  line, _, rule = text.partition(' #### ')
  if not rule.isdigit():
    return False
  steps = ((rule, str((int(x) + int(rule)) % 10)) for x in prompt)
  return line.split() == [word for step in steps for word in step]


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  before = rows['before']
  shared = [rows[f'shared rule, {d}_kl'] for d in ('reverse', 'forward')]
  fresh = [rows[f'fresh rules, {d}_kl'] for d in ('reverse', 'forward')]
  return [
    before['right'] < 0.3 and before['consistent'] > 0.9,
    *(r['right'] > 0.95 and r['reverse_kl_after'] < 0.05 for r in shared),
    *(
      r['right'] <= 0.25
      and r['reverse_kl_after'] > 0.5
      and r['consistent'] < limit
      for r, limit in zip(fresh, (0.2, 0.5), strict=True)
    ),
  ]
