"""What the configs share: plain OPD, settings of papers, and small sizes.

A config file says `import common`; the folder of configs is importable while
one of them is read. Paths of models are names of the Hugging Face hub, fetched
at first use. To have a model in a folder, for instance for a machine without a
network: `hf download Qwen/Qwen3-1.7B --local-dir=Qwen/Qwen3-1.7B`.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from jopd.run.config import base, did_you_mean, stage

_SHAPE = dict(
  model_type='qwen3',
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  rope_theta=10_000.0,
  initializer_range=0.1,
  tie_word_embeddings=True,
)
LARGE = _SHAPE | dict(hidden_size=128, intermediate_size=256, head_dim=32)
SMALL = _SHAPE | dict(hidden_size=64, intermediate_size=192, head_dim=16)

SUMS = dict(name='running_sum', count=8192, length=6, modulus=10)
SHIFTS = dict(name='shift', count=8192, length=4, modulus=10)
IMITATE = dict(demo=dict(objective='negative_log_likelihood'))
BOXED = (
  '{prompt}\n\nPlease reason step by step, and put your final answer within'
  ' \\boxed{}.'
)
HINTED = dict(name='with_answer', template='{answer} + {prompt}')

# Settings that all configs of a paper share.
MANY_FACES = dict(
  loss_aggregation='sequence_mean',
  rollout=dict(top_p=0.95),
  steps=1000,
  optimizer=dict(name='adamw', b2=0.98, weight_decay=0.1),
  warmup_steps=100,
)
RETHINKING = dict(
  group_size=4, learning_rate=1e-6, warmup_steps=0, lr_schedule='constant'
)
REVISITING = dict(
  steps=400,
  batch_size=16,
  group_size=8,
  num_minibatches=2,
  warmup_steps=0,
  lr_schedule='constant',
)
# Settings of methods that change the rollouts or the loop, not the loss.
LARGE_BATCH = dict(
  batch_size=128, warmup_steps=10, lr_schedule='constant', eval_every=0
)


def divergence(name: str | Mapping, **settings) -> dict:
  """A term of the loss that is a divergence between student and target."""
  return dict(objective='divergence', divergence=name) | settings


def top_k(k: int, of: str, tail: str) -> dict:
  """The support of the k likeliest tokens of the 'student' or 'target'."""
  return dict(name='top_k', k=k, of=of, tail=tail)


def policy_gradient(
  advantage: str | Mapping,
  *,
  surrogate: str | Mapping = 'reinforce',
  **settings,
) -> dict:
  """A term of the loss that is a policy gradient with this advantage."""
  term = dict(surrogate=surrogate, advantage=advantage)
  return dict(objective='policy_gradient') | term | settings


def linear(start: float, end: float, steps: int, after: int = 0) -> dict:
  """A number that goes from start to end within steps, from step `after` on."""
  return dict(
    schedule='linear_schedule',
    init_value=start,
    end_value=end,
    transition_steps=steps,
    transition_begin=after,
  )


def imitation(**differences) -> ConfigDict:
  """A stage that imitates the responses of a dataset or of a teacher."""
  defaults = dict(
    response_source='dataset',
    loss=IMITATE,
    batch_size=64,
    learning_rate=1e-5,
    lr_schedule='cosine',
    loss_chunk_tokens=2048,
  )
  return stage(**defaults | differences)


def grpo(**differences) -> ConfigDict:
  """A stage of GRPO with an asymmetric clip and without a KL (DAPO)."""
  clip = dict(name='ppo_clip', low=0.2, high=0.28)
  reward = policy_gradient(
    'group_advantage', surrogate=clip, old_policy='sampler'
  )
  defaults = dict(
    loss=dict(reward=reward),
    filter='nonzero_reward_std',
    steps=200,
    batch_size=32,
    group_size=8,
    num_minibatches=2,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    loss_chunk_tokens=2048,
  )
  return stage(**defaults | differences)


def distil(**differences) -> ConfigDict:
  """A stage of plain OPD, with differences.

  Plain OPD is the reverse KL over the whole vocabulary, to a frozen teacher, on
  one response of the student to each prompt.
  """
  plain = dict(
    teachers=dict(teacher='teacher'),
    loss=dict(match=divergence('reverse_kl')),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return stage(**plain | differences)


def opd(
  size: str,
  *,
  student: str = 'Qwen/Qwen3-1.7B',
  teacher: str = 'Qwen/Qwen3-8B',
  tokens: int = 4096,
  lessons: Mapping[str, Mapping] | None = None,
  **differences,
) -> ConfigDict:
  """A run of one stage of on-policy distillation on mathematics.

  Args:
    size: 'full' or 'tiny', the argument of the config file.
    student: a Hugging Face folder.
    teacher: another one; '' for none.
    tokens: the largest number of tokens of a response.
    lessons: see `tiny`.
    differences: settings of the stage that are not those of `distil`.

  Returns:
    A complete config.
  """
  models = dict(student=student) | (dict(teacher=teacher) if teacher else {})
  config = mathematics(size, tokens=tokens, **models)
  config.stages, config.distil = ('distil',), distil(**differences)
  return tiny(config, lessons=lessons) if size == 'tiny' else config


def self_distillation(
  size: str,
  *,
  student: str = 'Qwen/Qwen3-8B',
  hint: str = 'rule',
  rule: int | None = 3,
  **differences,
) -> ConfigDict:
  """`opd` with the student as its own teacher, which reads a solution too.

  Args:
    size: 'full' or 'tiny', the argument of the config file.
    student: a Hugging Face folder.
    hint, rule: see `tiny_self_distillation`.
    differences: settings of the stage that are not those of `distil`.

  Returns:
    A complete config.
  """
  config = mathematics(size, student=student)
  own = dict(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher=dict(name='with_solution')),
    max_teacher_prompt_tokens=5376,
  )
  config.stages, config.distil = ('distil',), distil(**own | differences)
  if size == 'tiny':
    tiny_self_distillation(config, hint=hint, rule=rule)
  return config


def mathematics(size: str, *, tokens: int = 4096, **models: str) -> ConfigDict:
  """The settings of a run on mathematics, without its stages.

  Args:
    size: 'full' or 'tiny', the argument of the config file.
    tokens: the largest number of tokens of a response.
    models: name -> a Hugging Face folder.

  Returns:
    A config that reads data/train.jsonl and data/test.jsonl (`prompt`,
    `answer`, and `response` where a stage imitates), grades the answer in a
    box, computes in bfloat16, and switches thinking off in chat templates that
    have such a switch.

  Raises: ValueError when there is no such size.
  """
  if size not in ('full', 'tiny'):
    raise ValueError(
      f'there is no size {size!r}{did_you_mean(size, ("full", "tiny"))}'
    )
  config = base()
  for name, path in models.items():
    config.models[name] = ConfigDict(dict(path=path))
  config.chat_template_kwargs.enable_thinking = False
  config.data = ConfigDict(dict(name='jsonl', path='data/train.jsonl'))
  config.eval_data = ConfigDict(dict(name='jsonl', path='data/test.jsonl'))
  config.reward = ConfigDict(dict(name='boxed_match'))
  config.max_prompt_tokens, config.max_response_tokens = 1024, tokens
  config.num_length_buckets = 3
  config.compute_dtype, config.remat = 'bfloat16', 'full'
  return config


def published(config: ConfigDict) -> ConfigDict:
  """Published prompts and evaluations of mathematics for a config.

  Trains on DAPO-Math-17k, evaluates on MATH-500 during training and on AIME,
  AMC and MATH-500 in `jopd eval`, with Qwen3's prompt for a boxed answer. The
  data are downloaded from the hub at first use, or read from a folder that
  --config.data.path=DIR names.

  Args:
    config: of `mathematics`; changed and returned.

  Returns:
    The config.
  """
  config.data = ConfigDict(
    dict(
      name='dapo_math', path='BytedTsinghua-SIA/DAPO-Math-17k', prompt='bare'
    )
  )
  config.eval_data = ConfigDict(dict(name='math500'))
  config.eval_tasks = ConfigDict(
    dict(
      aime24=dict(name='aime', year=2024),
      aime25=dict(name='aime', year=2025),
      amc23=dict(name='amc'),
      math500=dict(name='math500'),
    )
  )
  config.context = ConfigDict(dict(name='with_template', template=BOXED))
  config.reward = ConfigDict(dict(name='math_match'))
  config.eval.samples, config.eval.temperature, config.eval.top_p = 4, 0.7, 0.8
  return config


def at_scale(
  machine: str,
  machines: Mapping[str, Mapping],
  *,
  student: str,
  teacher: str,
  batch_size: int,
) -> ConfigDict:
  """Plain OPD of published models on published mathematics.

  One stage, 'distil', with four responses of up to 8,192 tokens to a prompt.

  Args:
    machine: one of `machines`, or 'tiny' for small models on a builtin task:
      the argument of the config file.
    machines: name -> what fits on it: `mesh`, `gradient_accumulation_steps` and
      `max_num_seqs`, and how many `devices` it has.
    student: a Hugging Face folder.
    teacher: another one.
    batch_size: prompts a step.

  Returns:
    A complete config.

  Raises: ValueError when there is no such machine.
  """
  if machine not in (*machines, 'tiny'):
    raise ValueError(f'no machine {machine!r}{did_you_mean(machine, machines)}')
  config = opd(
    'tiny' if machine == 'tiny' else 'full',
    student=student,
    teacher=teacher,
    tokens=8192,
    batch_size=batch_size,
    group_size=4,
    warmup_steps=10,
    lr_schedule='constant',
  )
  if machine == 'tiny':
    return config
  fits = machines[machine]
  config.mesh.update(fits['mesh'])
  config.distil.gradient_accumulation_steps = fits[
    'gradient_accumulation_steps'
  ]
  config.distil.max_num_seqs = config.eval.batch_size = fits['max_num_seqs']
  config.checkpoint.every = 25
  return published(config)


def tiny(
  config: ConfigDict,
  *,
  lessons: Mapping[str, Mapping] | None = None,
  data: Mapping = SUMS,
) -> ConfigDict:
  """The stages of a config with small models on a builtin task.

  Losses, response sources, contexts, rollouts and the order of stages stay.
  Models, data, lengths, batches, steps and learning rates become nearly those
  of configs/quickstart.py. Each model that is not made from another one is
  first trained on demonstrations, in a stage 'learn_NAME': the one called
  'teacher' is larger and masters the task, the others see 280 demonstrations,
  so that something is left to learn.

  Args:
    config: with models and stages; changed and returned.
    lessons: model -> settings of its first stage that differ from these.
    data: of all stages, a source and its arguments.

  Returns:
    The config.
  """
  copies = {
    config[name].student for name in config.stages if config[name].init_from
  }
  first = []
  for model in config.models:
    master = model == 'teacher' and model not in copies
    config.models[model] = ConfigDict(LARGE if master else SMALL)
    if model in copies:
      continue
    lesson = dict(student=model, response_source='dataset', loss=IMITATE)
    lesson |= dict(learning_rate=3e-3, warmup_steps=20)
    if master:
      lesson |= dict(steps=300, lr_schedule='cosine')
    else:
      lesson |= dict(steps=250, data=SUMS | dict(count=280))
    config[f'learn_{model}'] = stage(**lesson | (lessons or {}).get(model, {}))
    first.append(f'learn_{model}')
  for name in config.stages:
    _shrink(config[name])
  config.stages = (*first, *config.stages)
  config.tokenizer, config.chat_template_kwargs = '', ConfigDict()
  config.data = ConfigDict(data)
  config.eval_data = ConfigDict({**data, 'count': 256, 'split': 'test'})
  config.reward = ConfigDict(dict(name='exact_match'))
  config.max_prompt_tokens, config.max_response_tokens = 32, 16
  config.eval.prompts, config.eval.samples = 256, 0
  config.num_length_buckets = 1
  config.compute_dtype, config.remat = 'float32', ''
  return config


def tiny_self_distillation(
  config: ConfigDict, *, hint: str = 'rule', rule: int | None = 3
) -> ConfigDict:
  """`tiny` for teachers that are the student and read a hint.

  The task is to add a rule to numbers, and only prompts of the teachers contain
  the rule. Before that, the model has learnt to follow a rule; half of its
  prompts contained one.

  Args:
    config: with a student and contexts for its teachers; changed and returned.
    hint: of the `shift` task, what teachers read: 'rule', or 'worked', a whole
      response, by the contexts that the config has.
    rule: the number to add, the same for all prompts; None draws one for each.

  Returns:
    The config.
  """
  lesson = dict(
    data=SHIFTS | dict(rule=None, hint_fraction=0.5, hint=hint),
    steps=700,
    lr_schedule='cosine',
  )
  tiny(config, data=SHIFTS | dict(rule=rule), lessons=dict(student=lesson))
  config.models.student.update(LARGE)
  for name in config.stages:
    for role, context in config[name].teacher_contexts.items():
      config[name].teacher_contexts[role] = ConfigDict(
        dict(name=context.name, template='{response} + {prompt}')
        if hint == 'worked'
        else HINTED
      )
  return config


def _shrink(settings: ConfigDict) -> None:
  """The settings of a stage that depend on the size of models and data."""
  grouped = settings.group_size > 1
  several = not isinstance(settings.response_source, str | ConfigDict)
  settings.update(
    dict(
      steps=200,
      learning_rate=1e-3 if grouped else 2e-3,
      warmup_steps=10,
      batch_size=16 if grouped else 32 if several else 64,
      group_size=8 if grouped else settings.group_size,
      gradient_accumulation_steps=1,
      max_num_seqs=0,
      loss_chunk_tokens=256,
      eval_every=0,
      mask_tokens=(),  # these are of real tokenizers
    )
  )
  settings.data = ConfigDict()
  if settings.teacher_contexts:
    settings.max_teacher_prompt_tokens = 48
