"""Every setting of a run, with its default and its meaning.

A config file in `configs/` starts from `base()` and adds one `stage(...)` per
stage; a key that is not here is refused, with the nearest one that is. All
keys exist before the command line is read, so each can be overridden:
`--config.distil.steps=100`.
"""

from collections.abc import Mapping
import contextlib
import difflib
import pathlib
import traceback

from ml_collections import ConfigDict

_PACKAGE = pathlib.Path(__file__).parents[1]
# Settings of several forms: a name, a function, a mapping, a tuple.
SPECS = (
  *('data', 'eval_data', 'context', 'reward', 'filter', 'loss_aggregation'),
  *('response_source',),
)
# Keys of the first release -> what they are called now.
RENAMED = dict(
  template='chat_template_kwargs',
  buckets='num_length_buckets',
  trackers='loggers',
  max_bad_rows='max_bad_row_fraction',
  terms='loss',
  reduce='loss_aggregation',
  temperature='loss_temperature',
  source='response_source',
  moving='teacher_sync',
  blend='teacher_mixing',
  contexts='teacher_contexts',
  max_context_tokens='max_teacher_prompt_tokens',
  updates='num_minibatches',
  micro_batches='gradient_accumulation_steps',
  select='filter',
  slots='max_num_seqs',
  limit='max_new_tokens',
  start='init_from',
  clip_norm='max_grad_norm',
  spike='grad_norm_spike',
  max_skipped='max_consecutive_skips',
  decay='lr_schedule',
  chunk_tokens='loss_chunk_tokens',
  pace='callbacks',
  controllers='callbacks',
  replay='callbacks',
  foresight='callbacks',
  weight_extrapolation='callbacks',
  held_out_every='callbacks',
  credit='advantage',
  anchor='old_policy',
  penalty='estimator',
  on='rows',
)


def section(**values) -> ConfigDict:
  """A section of a config, whose values may change their types.

  A spec is a name, a function or a mapping; checks see to the rest.
  """
  return ConfigDict(values, type_safe=False)


def base() -> ConfigDict:
  """The settings of a run that are not a stage's."""
  return section(
    # Weights, data order and sampled tokens follow from it.
    seed=0,
    # The stages to run, in order; each name is a section made by `stage`.
    stages=(),
    # Name -> dict(path='hugging/face/folder or hub id', revision=...), or the
    # fields of a config.json for fresh weights, dict(model_type='qwen3', ...),
    # or a function that returns a `models.api.Model`.
    models=section(),
    # 'builtin', or a folder with a Hugging Face tokenizer and chat template.
    # Empty: that of the first model with a path.
    tokenizer='',
    # Arguments of the chat template, such as dict(enable_thinking=False).
    chat_template_kwargs=section(),
    # Prompts to train on, and to evaluate on: a function of data/sources/.
    data=section(name='running_sum'),
    eval_data=section(name='running_sum'),
    # Name -> prompts of the same form, which `jopd eval` uses instead of
    # eval_data; training evaluates on eval_data alone.
    eval_tasks=section(),
    # Largest fraction of bad rows in a source. Bad rows are left out, counted
    # and written to quarantine.jsonl; with more of them the run stops.
    max_bad_row_fraction=0.01,
    # What a model reads of an example: a function of data/contexts.py, such as
    # dict(name='with_template', template='{prompt} Think first.').
    context=section(name='same'),
    # The reward of a response: a function of rewards/.
    reward=section(name='exact_match'),
    # Longer prompts are left out. The sum must fit max_position_embeddings.
    max_prompt_tokens=32,
    max_response_tokens=32,
    # Lengths that batches are cut to: the maximum, a half, a quarter, ... Each
    # costs a compilation.
    num_length_buckets=1,
    # Texts that end a response, beside the stop tokens.
    stop_strings=(),
    # Devices by axis; -1 for all that remain.
    mesh=section(data=-1, fsdp=1, tensor=1),
    # Of rollouts, teachers and the learner's products. Master weights,
    # optimizer and losses are float32.
    compute_dtype='float32',
    # What the backward pass computes again: '' nothing, 'dots' all but products
    # with weights, 'full' all but the input of each layer.
    remat='',
    eval=section(
      prompts=256,  # of eval_data
      samples=4,  # per prompt, for avg@k and pass@k; 0 for greedy only
      temperature=1.0,
      top_p=1.0,
      batch_size=256,  # responses decoded at a time; no effect on the numbers
    ),
    # Where metrics are shown beside the files: functions of train/loggers.py.
    loggers=('tensorboard',),
    # Steps between checkpoints, and how many are kept.
    checkpoint=section(every=100, keep=2),
  )


def stage(**settings) -> ConfigDict:
  """The settings of a stage: the defaults below, overridden by `settings`.

  Raises:
    ConfigError: a setting that no stage has; the message names the nearest.
  """
  config = section(
    # The model that learns, and the model that it is a copy of at first; empty
    # for itself. student='teacher', init_from='student' makes a teacher from
    # the student.
    student='student',
    init_from='',
    # Empty: all parameters are trained. dict(rank=16, alpha=32.0) trains
    # adapters, of some matrices with targets=('q', 'v'); base='int8' keeps the
    # frozen parameters in eight bits. The saved model has the adapters merged.
    lora=section(),
    # Role -> model. A teacher is frozen as it is when the stage starts, also
    # where it is the student itself.
    teachers=section(),
    # Role -> how a teacher follows the student, a function of
    # train/teacher_sync.py: dict(name='ema', decay=0.99).
    teacher_sync=section(),
    # What generates the responses: 'student', 'dataset' or a teacher's role.
    # ('student', 'teacher') names the source of each response to a prompt;
    # dict(student=0.75, dataset=0.25) draws one source for all of a step.
    response_source='student',
    # Role of one teacher that takes part in the student's sampling -> how, a
    # function of rollout/teacher_mixing.py: dict(name='mixed', share=0.2).
    teacher_mixing=section(),
    # The stage's own data and student context; empty: those of the run.
    data=section(),
    context=section(),
    # Role -> what that teacher reads before the response, a function of
    # data/contexts.py. Empty: the student's prompt.
    teacher_contexts=section(),
    max_teacher_prompt_tokens=0,
    # Another dtype, or 'int8', of frozen teachers; empty: compute_dtype.
    teacher_dtype='',
    # 'host': layers of frozen teachers are in host memory except while their
    # model scores.
    teacher_memory='',
    # Name -> term of the loss; see run/loss.py and docs/losses.md.
    loss=section(),
    # How tokens become one number, a function of losses/aggregation.py.
    loss_aggregation='token_mean',
    # Both models' logits are divided by it; the loss is not multiplied back.
    loss_temperature=1.0,
    # Tokens per chunk of the loss, on each device that divides the batch. 256
    # suits CPUs; accelerators want more.
    loss_chunk_tokens=256,
    steps=100,  # batches of prompts
    batch_size=64,  # prompts per step, over all hosts
    group_size=1,  # responses per prompt
    # Updates on the responses of a step, each on its part of the prompts. With
    # more than 1, policy gradients need old_policy='sampler'. Schedules of the
    # loss and the learning rate count updates.
    num_minibatches=1,
    gradient_accumulation_steps=1,  # exact: denominators are taken before
    # Which responses are learnt, a function of train/filters.py: 'keep_all',
    # 'not_truncated', 'nonzero_reward_std', dict(name='min_reward', least=1.0).
    filter='keep_all',
    # Texts of one token each that are masked in responses.
    mask_tokens=(),
    # Responses decoded at a time; a finished one makes room. 0: all at once.
    max_num_seqs=0,
    # Another dtype, or 'int8', of rollouts; the metric
    # sampling/logp_difference shows what it costs.
    rollout_dtype='',
    # max_new_tokens=0 is max_response_tokens. Each may be a schedule of the
    # step, or controlled by a callback.
    rollout=section(
      temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_new_tokens=0
    ),
    # Name -> function (setup, *, settings) -> Callback: 'measure_held_out',
    # 'fixed_staleness', 'replay_buffer', 'staged_curriculum', 'adaptive_kl',
    # 'log_samples'; see train/callbacks. dict(controlled=NAME) may stand for
    # any number that the callback NAME controls.
    callbacks=section(),
    held_out=0,  # last examples of the data, kept apart for callbacks
    # An optimizer of optax and its arguments.
    optimizer=section(name='adamw', b2=0.98, weight_decay=0.0),
    learning_rate=1e-3,
    warmup_steps=0,  # updates
    lr_schedule='constant',  # 'constant', 'linear' or 'cosine', to 0
    max_grad_norm=1.0,  # of the gradient; 0 for no clipping
    # An update is skipped if its loss or gradient is not finite, or if its
    # gradient norm exceeds this multiple of the median of the last 32; 0 for no
    # bound. So many skipped updates in a row end the run.
    grad_norm_spike=0.0,
    max_consecutive_skips=3,
    eval_every=0,  # steps; 0 evaluates before and after only
  )
  refuse_unknown(settings, config, 'a stage')
  for name, value in settings.items():
    # Replaced, not merged: settings of one optimizer are not another's.
    config[name] = section(**value) if isinstance(value, dict) else value
  return config


class ConfigError(ValueError):
  """A config, or a flag of a command, is wrong; a person can mend it.

  A command shows its message on one line, and exits with code 2.
  """

  exit_code = 2


@contextlib.contextmanager
def error_context(where: str):
  """Names the setting that an error inside is about.

  A `ConfigError`, a ValueError that jopd itself raises and a file that is not
  there become a ConfigError which begins with the name. All other errors, those
  of a user's own functions among them, keep their type and their traceback, and
  get the name as a note.
  """
  try:
    yield
  except Exception as error:
    if _is_setting(error):
      raise ConfigError(f'{where}: {error}') from error
    error.add_note(f'jopd: in {where}')
    raise


def _is_setting(error: Exception) -> bool:
  """Whether an error says that a setting is wrong."""
  if isinstance(error, ConfigError | FileNotFoundError | NotADirectoryError):
    return True
  frames = traceback.extract_tb(error.__traceback__)
  raised_by = frames[-1].filename if frames else ''
  ours = pathlib.Path(raised_by).is_relative_to(_PACKAGE)
  return isinstance(error, ValueError) and ours


def refuse_unknown(given, known, where: str) -> None:
  """Raises a ConfigError for a key of `given` that is not in `known`."""
  for name in given:
    if name in known:
      continue
    if (new := RENAMED.get(name)) in known:
      raise ConfigError(f'{where}: {name!r} is now called {new!r}')
    raise ConfigError(
      f'{where} has no setting {name!r}{did_you_mean(name, known)}'
    )


def check_arguments(arguments, parameters: Mapping, where: str) -> None:
  """Refuses arguments that a signature does not have, or has and misses.

  Raises:
    ConfigError: the message names the first of them.
  """
  if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    refuse_unknown(arguments, parameters, where)
  for name, parameter in parameters.items():
    required = parameter.default is parameter.empty
    required &= parameter.kind is not parameter.VAR_KEYWORD
    if required and name not in arguments:
      raise ConfigError(f'{where} needs {name!r}')
  for name, value in arguments.items():
    # A spec that was read, or a number that changes, is a NamedTuple.
    if name in parameters and not hasattr(value, '_fields'):
      check_kind(f'{where}: {name}', value, parameters[name].annotation)


def check_kind(name: str, value, kind) -> None:
  """Refuses a value that is not of a plain type, or a union of these."""
  kinds = {*getattr(kind, '__args__', [kind])}
  plain = {bool, int, float, str, type(None)}
  if hasattr(value, 'dtype') or not kinds <= plain:  # arrays are numbers, too
    return
  if type(value) not in (kinds | {int} if float in kinds else kinds):
    kind = getattr(kind, '__name__', kind)
    raise ConfigError(f'{name} must be {kind}, got {value!r:.60}')
  if value != value or (type(value) is int and abs(value) >= 2**63):
    raise ConfigError(f'{name} is out of range, got {value!r:.60}')


def did_you_mean(name: object, known) -> str:
  """The end of an error message: the nearest known name, or all of them."""
  near = difflib.get_close_matches(str(name), list(known), n=1)
  if near:
    return f'; did you mean {near[0]!r}?'
  return f'; choose from {", ".join(sorted(known))}' if known else ''
