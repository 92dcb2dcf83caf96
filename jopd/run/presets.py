"""Settings that recipes share: real models on mathematics, at scale, in small.

The paths of models are names of the hub. Where there is no such folder they
are fetched; to have them at hand, for instance without a network:
`hf download Qwen/Qwen3-1.7B --local-dir=Qwen/Qwen3-1.7B`.
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

DAPO = 'BytedTsinghua-SIA/DAPO-Math-17k'
SUMS = dict(name='running_sum', count=8192, length=6, modulus=10)
IMITATE = dict(demo=dict(objective='negative_log_likelihood'))
# Imitation before the recipe begins: of a teacher, and of a student, who sees
# few demonstrations, so that something is left to learn.
_MASTER = dict(steps=300, lr_schedule='cosine')
_BEGINNER = dict(steps=250, data=SUMS | dict(count=280))


def mathematics(size: str, *, tokens: int = 4096, **models: str) -> ConfigDict:
  """The settings of a run on mathematics; its stages are still to come.

  Args:
    size: 'full' or 'tiny', the argument of the config file.
    tokens: most tokens of a response.
    models: name -> a Hugging Face folder.

  Returns:
    A config that reads data/train.jsonl and data/test.jsonl (`prompt`,
    `answer`, and `response` where a stage imitates), wants answers in a box,
    and computes in bfloat16. Chat templates are asked not to think, as far as
    they listen.

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

  Trains on DAPO-Math-17k, evaluates on MATH-500 while it trains and on AIME,
  AMC and MATH-500 in `jopd eval`; asks for a box in Qwen3's words, and compares
  answers as mathematics. The data are downloaded from the hub at first use, or
  read from folders that --config.data.path=DIR names.

  Args:
    config: of `mathematics`; changed and returned.

  Returns:
    The config.
  """
  config.data = ConfigDict(dict(name='dapo_math', path=DAPO, prompt='bare'))
  config.eval_data = ConfigDict(dict(name='math500'))
  config.eval_tasks = ConfigDict(
    dict(
      aime24=dict(name='aime', year=2024),
      aime25=dict(name='aime', year=2025),
      amc23=dict(name='amc'),
      math500=dict(name='math500'),
    )
  )
  config.context = ConfigDict(
    dict(
      name='with_template',
      template='{prompt}\n\nPlease reason step by step, and put your final'
      ' answer within \\boxed{}.',
    )
  )
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
  """On-policy distillation of published models on published mathematics.

  One stage, 'distil': the reverse KL over the whole vocabulary on four
  responses to a prompt, of up to 8,192 tokens.

  Args:
    machine: one of `machines`, or 'tiny' for small models on a builtin task:
      the argument of the config file.
    machines: name -> what fits on it: `mesh`, `micro_batches` and `slots`, and
      how many `devices` it has.
    student: a Hugging Face folder.
    teacher: another one.
    batch_size: prompts a step.

  Returns:
    A complete config.

  Raises: ValueError when there is no such machine.
  """
  if machine not in (*machines, 'tiny'):
    raise ValueError(f'no machine {machine!r}{did_you_mean(machine, machines)}')
  size = 'tiny' if machine == 'tiny' else 'full'
  config = mathematics(size, tokens=8192, student=student, teacher=teacher)
  config.stages = ('distil',)
  config.distil = stage(
    teachers=dict(teacher='teacher'),
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    steps=200,
    batch_size=batch_size,
    group_size=4,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
    eval_every=50,
  )
  if machine == 'tiny':
    return tiny(config)
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

  Losses, sources, contexts, rollouts and the order of stages stay; models,
  data, lengths, batches, steps and learning rates become those of
  configs/quickstart.py, nearly. Models that a stage does not make from another
  one are first taught by imitation, each in a stage of its own, 'learn_NAME':
  the one called 'teacher' is larger and masters the task, others have seen 280
  demonstrations.

  Args:
    config: with models and stages; changed and returned.
    lessons: model -> settings of its first stage that are not as above.
    data: of all stages, a source and its arguments.

  Returns:
    The config.
  """
  lessons = dict(lessons or {})
  made = {
    config[name].student for name in config.stages if config[name].init_from
  }
  first = []
  for model in config.models:
    master = model == 'teacher' and model not in made
    config.models[model] = ConfigDict(LARGE if master else SMALL)
    if model in made:
      continue
    name = f'learn_{model}'
    lesson = dict(student=model, response_source='dataset', loss=IMITATE)
    lesson |= dict(learning_rate=3e-3, warmup_steps=20)
    lesson |= (_MASTER if master else _BEGINNER) | lessons.get(model, {})
    config[name] = stage(**lesson)
    first.append(name)
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


def tiny_told(config: ConfigDict, *, hint: str = 'rule') -> ConfigDict:
  """`tiny` for self-teachers that are told more than their student.

  The task is to add a rule to numbers, one for all prompts, that only the
  teachers are told. The model has learnt before to follow a rule, and in half
  of its prompts was told none.

  Args:
    config: with a student and contexts for its teachers; changed and returned.
    hint: of the `shift` task, what they are told: 'rule', or 'worked', a whole
      response, which comes from the contexts that the config has.

  Returns:
    The config.
  """
  rules = dict(name='shift', count=8192, length=4, modulus=10, rule=3)
  lesson = dict(
    data=rules | dict(rule=None, hint_fraction=0.5, hint=hint),
    steps=700,
    lr_schedule='cosine',
  )
  tiny(config, data=rules, lessons=dict(student=lesson))
  config.models.student.update(LARGE)
  words = dict(name='with_answer', template='{answer} + {prompt}')
  for name in config.stages:
    for role, told in config[name].teacher_contexts.items():
      if hint == 'worked':
        words = dict(name=told.name, template='{response} + {prompt}')
      config[name].teacher_contexts[role] = ConfigDict(words)
  return config


def _shrink(settings: ConfigDict) -> None:
  """The settings of a stage that depend on the size of models and data."""
  settings.data = ConfigDict()
  settings.steps = 200
  settings.learning_rate = 1e-3 if settings.group_size > 1 else 2e-3
  settings.warmup_steps = 10
  if settings.group_size > 1:
    settings.batch_size, settings.group_size = 16, 8
  else:
    several = not isinstance(settings.response_source, str | ConfigDict)
    settings.batch_size = 32 if several else 64
  (
    settings.gradient_accumulation_steps,
    settings.max_num_seqs,
    settings.loss_chunk_tokens,
  ) = 1, 0, 256
  settings.eval_every = 0
  settings.mask_tokens = ()  # of real tokenizers
  if settings.teacher_contexts:
    settings.max_teacher_prompt_tokens = 48
