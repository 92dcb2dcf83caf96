"""From the config of a variant to its runs, and the plain ones beside it."""

from collections.abc import Callable, Mapping
import hashlib
import inspect
import json
import pathlib
import re
from typing import NamedTuple

from founding.lab import Lab, Record, matching, policy_gradient

from jopd import losses
from jopd.run import config as configs
from jopd.run import overrides, resolve

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs' / 'variants'
CONTROL = 'teacher_free'
PLAIN = ('opd', 'sampled_token', 'grpo', CONTROL)
# Where names in a stage are looked up.
MODULES = {kind.module for kind in resolve.KINDS.values() if kind.module}
# Settings of a stage that are the budget, and not the method.
_BUDGET = (
  *('student', 'data', 'context', 'steps', 'batch_size'),
  *(
    'optimizer',
    'learning_rate',
    'warmup_steps',
    'lr_schedule',
    'max_grad_norm',
  ),
  *('loss_chunk_tokens', 'eval_every'),
)


def methods() -> dict[str, pathlib.Path]:
  """Name -> file of every variant; the control is plain, and not among them."""
  files = {file.stem: file for file in sorted(CONFIGS.glob('*.py'))}
  return {name: file for name, file in files.items() if name != CONTROL}


class Runs(NamedTuple):
  """The configs of a variant and one seed, ready to run."""

  own: object
  # Of PLAIN -> name of the run, config; the sampled token's for those with a
  # policy gradient, GRPO with an advantage that reads rewards.
  plain: dict[str, tuple[str, object]]


def prepare(lab: Lab, file: pathlib.Path, *, shorten: int = 1) -> Runs:
  """The configs of a variant, models taught; each model is taught once.

  Args:
    lab: the runs of this seed.
    file: of the variant.
    shorten: divides all steps, to see whether everything runs.
  """
  config = overrides.load(f'{file}:tiny').unlock()
  config.seed = lab.seed
  for name in config.stages:
    config[name].steps = max(1, config[name].steps // shorten)
  lessons = [name for name in config.stages if name.startswith('learn_')]
  for name in lessons:
    student = config[name].student
    config.models[student] = dict(path=_taught(lab, config, name))
    del config[name]
  config.stages = tuple(n for n in config.stages if n not in lessons)
  last = config[config.stages[-1]]
  last.eval_every, last.lr_schedule = max(1, last.steps // 4), 'cosine'
  plain = {}
  for kind in _kinds(last.loss.values()):
    made = _plain(config, kind)
    plain[kind] = f'plain/{kind}-{digest(made)}', made
  return Runs(config, plain)


def functions(settings) -> list[Callable]:
  """All functions of jopd that settings name or hold, however deep."""
  if isinstance(settings, str):
    named = (getattr(module, settings, None) for module in MODULES)
    return [function for function in named if inspect.isfunction(function)]
  if hasattr(settings, 'values'):
    return [f for value in settings.values() for f in functions(value)]
  return [settings] if inspect.isfunction(settings) else []


def _kinds(terms) -> list[str]:
  """Which plain runs stand beside these terms."""
  policy = [t for t in terms if t.objective == 'policy_gradient']
  advantages = [f for term in policy for f in functions(term.get('advantage'))]
  rewarded = any(losses.reads_of(function).reward for function in advantages)
  left_out = {'sampled_token': not policy, 'grpo': not rewarded}
  return [kind for kind in PLAIN if not left_out.get(kind)]


def digest(config) -> str:
  """Some letters that stand for all settings of a config but its seed."""
  config = config.copy_and_resolve_references().unlock()
  config.seed = 0
  settings = json.dumps(resolve.plain(config), sort_keys=True)
  settings = re.sub(r'/seed\d+/', '/seed/', settings)
  return hashlib.sha256(settings.encode()).hexdigest()[:8]


def _taught(lab: Lab, config, lesson: str) -> str:
  """The folder of a model after its lesson."""
  own = configs.base()
  for name in own:
    if name not in ('models', 'stages'):
      del own[name]
      own[name] = config[name]
  student = config[lesson].student
  own.models[student] = config.models[student]
  own.stages = (lesson,)
  own[lesson] = config[lesson]
  return lab.run(f'taught/{student}-{digest(own)}', own).model


def _plain(config, kind: str):
  """The same models, data and budget with a plain loss."""
  config = config.copy_and_resolve_references().unlock()
  given = config[config.stages[-1]]
  budget = {name: given[name] for name in _BUDGET}
  if isinstance(given.response_source, tuple | list):
    budget['group_size'] = len(given.response_source)
  else:
    budget['group_size'] = given.group_size
  target = {}
  if kind in ('opd', 'sampled_token'):
    # Of several teachers that play parts of the method, the one named so.
    several = 'teacher' not in given.teachers
    roles = list(given.teachers) if several else ['teacher']
    budget['teachers'] = {role: given.teachers[role] for role in roles}
    hinted = [role for role in roles if role in given.teacher_contexts]
    if hinted:
      budget['teacher_contexts'] = {
        role: given.teacher_contexts[role] for role in hinted
      }
      budget['max_teacher_prompt_tokens'] = given.max_teacher_prompt_tokens
    if several:
      weights = {role: 1 / len(roles) for role in roles}
      target = dict(target=dict(name='mixture', weights=weights))
  for name in config.stages:
    del config[name]
  config.stages = ('distil',)
  config.distil = configs.stage(loss=_terms(kind, target), **budget)
  used = {budget['student'], *budget.get('teachers', {}).values()}
  for model in [m for m in config.models if m not in used]:
    del config.models[model]
  return config


def _terms(kind: str, target: Mapping) -> dict:
  if kind == 'opd':
    return matching('reverse_kl', **target)
  if kind == 'sampled_token':
    return dict(advantage=policy_gradient('log_ratio', **target))
  if kind == 'grpo':
    advantage, clip = 'group_advantage', dict(surrogate='ppo_clip')
    return dict(reward=policy_gradient(advantage, **clip, old_policy='sampler'))
  control = overrides.load(f'{CONFIGS / CONTROL}.py')
  return control[control.stages[-1]].loss.to_dict()


def measure(record: Record, config) -> dict:
  """The accuracies of a finished run, and its seconds."""
  stage = config.stages[-1]
  student = config[stage].student
  evaluated = {
    row['step']: row['greedy_accuracy']
    for row in record.run.rows
    if row['kind'] == 'eval'
    and (row['stage'], row['model']) == (stage, student)
  }
  stages = record.run.summary['stages']
  work = ('rollout', 'reward', 'data', 'teacher', 'learner')
  seconds = sum(
    taken for s in stages.values() for taken in _of(s['wall_seconds'], work)
  )
  return dict(
    teacher=stages[stage]['teacher'],
    accuracy={str(step): value for step, value in sorted(evaluated.items())},
    length=record.trained('response_length')[-10:].mean(),
    seconds=seconds,
    compile_seconds=sum(s['compile_seconds'] for s in stages.values()),
  )


def _of(seconds: Mapping[str, float], names) -> list[float]:
  return [seconds[name] for name in names if name in seconds]
