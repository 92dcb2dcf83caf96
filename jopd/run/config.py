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
# Settings that name functions, or have several forms: a text, a mapping, a tuple.
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
  config = section()
  # One seed gives the weights, the data order and every sampled token.
  config.seed = 0
  # The stages to run, in order; each name is a section made by `stage`.
  config.stages = ()

  # Name of a model -> either dict(path='hugging/face/folder'), where a name of
  # the hub will do, with a revision if need be, or the sizes of a fresh one:
  # the fields of its config.json, dict(model_type='qwen3', ...).
  config.models = section()
  # 'builtin', or a folder with a Hugging Face tokenizer and chat template.
  # Empty: the one in the first model folder.
  config.tokenizer = ''
  # Extra arguments of the chat template, such as dict(enable_thinking=False).
  config.chat_template_kwargs = section()

  # Where prompts come from: a function of data/sources/ and its arguments.
  config.data = section(name='running_sum')
  # The prompts that evaluations use; the same form.
  config.eval_data = section(name='running_sum')
  # Name -> prompts of the same form, such as dict(amc=dict(name='amc')), that
  # `jopd eval` answers instead; training evaluates on eval_data alone.
  config.eval_tasks = section()
  # Largest share of bad rows in one source: they are left out, counted and
  # written to quarantine.jsonl in the run's folder. Beyond it the run stops.
  config.max_bad_row_fraction = 0.01
  # What a model reads of an example, in training and evaluation: a function of
  # data/contexts.py, such as dict(name='with_template', template='{prompt} !').
  config.context = section(name='same')
  # How an answer is found and graded: a function of rewards/.
  config.reward = section(name='exact_match')
  # Longer prompts are dropped and counted; shapes are padded to these. Both
  # together must fit max_position_embeddings of every model.
  config.max_prompt_tokens = 32
  config.max_response_tokens = 32
  # Sizes that a batch is cut to where all of it is shorter: the two maxima, a
  # half of them, a quarter, ... Each costs a compilation when it is first met.
  config.num_length_buckets = 1
  # Texts that end a response, beside the tokens that do.
  config.stop_strings = ()

  # Devices by axis; -1 for one of them means all that remain.
  config.mesh = section(data=-1, fsdp=1, tensor=1)
  # Rollouts, teachers and the learner's products run in this; master weights,
  # optimizer and losses stay float32.
  config.compute_dtype = 'float32'
  # What the backward pass recomputes instead of having it kept: '' nothing,
  # 'dots' all but the products with weights, 'full' all but each layer's input.
  config.remat = ''

  config.eval = section(
    **dict(
      prompts=256,  # of eval_data
      samples=4,  # per prompt, for avg@k and pass@k; 0 for greedy only
      temperature=1.0,
      top_p=1.0,
      # Responses decoded at once; the others wait for one to end. Greedy and
      # sampled ones alike. The numbers do not depend on it.
      batch_size=256,
    )
  )
  # Where rows of the logs are shown, beside their files; see train/loggers.py.
  config.loggers = ('tensorboard',)
  # Steps between checkpoints, and how many are kept.
  config.checkpoint = section(every=100, keep=2)
  return config


def stage(**settings) -> ConfigDict:
  """One stage: `base`-like defaults overridden by `settings`.

  Raises:
    ValueError: a setting that no stage has; the message names the nearest.
  """
  config = section()
  # Which of `models` learns.
  config.student = 'student'
  # Which of `models` it is a copy of when the stage starts; empty: itself. So a
  # teacher can be made from the student: student='teacher', start='student'.
  config.init_from = ''
  # Empty: all its parameters are trained. dict(rank=16, alpha=32.0): adapters
  # of its matrices, and the rest is frozen; targets=('q', 'v') for some of
  # them, base='int8' to keep what is frozen in eight bits. See models/lora.py;
  # ten times the learning rate suits. What the stage leaves is whole again.
  config.lora = section()
  # Role -> which of `models` plays it: dict(teacher='teacher'). It is frozen as
  # it is at the stage's start; a model that teaches itself is copied.
  config.teachers = section()
  # Role -> how that teacher then follows the student, a function of
  # train/teacher_sync.py: dict(teacher=dict(name='ema', decay=0.99)), or
  # dict(name='periodic', every=10), both counted in updates.
  config.teacher_sync = section()
  # Who writes responses: 'student' (on-policy), 'dataset' (the rows' own) or a
  # teacher's role. ('student', 'teacher') names the writer of each response to
  # a prompt; dict(student=0.75, dataset=0.25) draws one for all of a step.
  config.response_source = 'student'
  # Role of one teacher -> how it has a say in every token that the student
  # writes, a function of rollout/teacher_mixing.py: dict(teacher=dict(name='mixed',
  # share=0.2)). It reads the student's prompt and decodes along: time and cache
  # of a second model. Anchor policy gradients to the 'sampler'.
  config.teacher_mixing = section()
  # The stage's own prompts and responses, like config.data; empty: config.data.
  config.data = section()
  # What the student reads in this stage, if not config.context, like that one.
  config.context = section()
  # Role -> what that teacher reads before the response, a function of
  # data/contexts.py. One that is not named here reads the student's prompt.
  config.teacher_contexts = section()
  config.max_teacher_prompt_tokens = 0  # slots of such a prompt
  # Teachers are kept and run in this instead of compute_dtype: another dtype,
  # or 'int8' for matrices rounded to eight bits, of those that do not move.
  config.teacher_dtype = ''
  # 'host': layers of teachers that do not move wait in the memory of the hosts,
  # and are on the devices while their model scores. Empty: always there.
  config.teacher_memory = ''
  # The loss, a sum of terms; see run/resolve.py and docs/losses.md.
  config.loss = section()
  # How tokens become one number: a function of losses/aggregation.py, or
  # dict(name='fixed_length', length=512).
  config.loss_aggregation = 'token_mean'
  # The loss divides both models' logits by it; no factor is put back.
  config.loss_temperature = 1.0
  config.steps = 100  # batches of prompts, each with its responses
  config.batch_size = 64  # prompts a step, over all hosts
  config.group_size = 1  # responses per prompt; a tuple of sources says it
  # Into how many parts a step's prompts are cut, each for one update, in order.
  # All but the first learn from responses of an older student: anchor policy
  # gradients to the 'sampler'. Schedules count updates.
  config.num_minibatches = 1
  # Which responses are learnt from, a function of train/filters.py: 'keep_all',
  # 'nonzero_reward_std', 'not_truncated', dict(name='min_reward', also='not_truncated').
  config.filter = 'keep_all'
  # Texts of one token each that are learnt nowhere in a response, such as
  # '<think>'. Masked, like what is not selected: not in the loss's denominator.
  config.mask_tokens = ()
  # Responses decoded at a time; the others wait for one to end. 0: all at once.
  config.max_num_seqs = 0
  # Rollouts run in this instead of compute_dtype: another dtype, or 'int8' for
  # matrices rounded to eight bits. The metric
  # 'sampling/logp_difference' shows what it costs.
  config.rollout_dtype = ''
  config.gradient_accumulation_steps = (
    1  # gradient accumulation; exact, see reductions
  )
  # How responses are sampled; limit is the most tokens of one, 0 for
  # max_response_tokens. Each may be a schedule of the step, or controlled.
  config.rollout = section(
    **dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_new_tokens=0)
  )
  # Name -> what one method needs around the steps: 'measure_held_out',
  # 'fixed_staleness', 'replay_buffer', 'staged_curriculum', 'adaptive_kl',
  # 'log_samples', or a function (setup, *, settings) -> Callback of one's own,
  # 'package.module:function'; see train/callbacks. Where one controls a scalar,
  # dict(controlled=NAME) may stand wherever a schedule may.
  config.callbacks = ConfigDict(type_safe=False)
  # The last examples of the stage's data, which are kept apart: not learnt
  # from, but answered and graded by callbacks.
  config.held_out = 0
  # An optimizer of optax by name, and its arguments; mu_dtype='bfloat16' halves
  # the memory of Adam's first moment. The second cannot follow: with b2 = 0.999
  # its changes are below what bfloat16 resolves.
  config.optimizer = section(name='adamw', b2=0.98, weight_decay=0.0)
  config.learning_rate = 1e-3
  config.warmup_steps = 0  # updates
  config.lr_schedule = 'constant'  # 'constant', 'linear' or 'cosine', to 0
  config.max_grad_norm = 1.0  # of the gradient; 0 leaves it alone
  # An update whose loss or gradient is not finite is skipped, as if it had not
  # been; so is one whose gradient norm is more than `spike` times the median of
  # the last 32, if that is not 0.
  config.grad_norm_spike = 0.0
  # So many skipped updates in a row stop the run, which then says where the
  # first number that is not finite arose.
  config.max_consecutive_skips = 3
  # Tokens per chunk of the loss, on each of the devices that divide the batch.
  # 256 suits CPUs; accelerators want more, until memory binds.
  config.loss_chunk_tokens = 256
  config.eval_every = 0  # steps; 0 evaluates before and after only
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
    if name in parameters and not isinstance(value, tuple | Mapping):
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


def did_you_mean(name: str, known) -> str:
  """The end of an error message: the nearest known name, or all of them."""
  near = difflib.get_close_matches(str(name), list(known), n=1)
  if near:
    return f'; did you mean {near[0]!r}?'
  return f'; choose from {", ".join(sorted(known))}' if known else ''
