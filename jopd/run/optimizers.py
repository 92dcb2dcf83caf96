"""From names to optimizers: those of optax, with clipping and a learning rate.

What is wrong with a name or its arguments is one ValueError, as in run/resolve.py.
"""

from collections.abc import Callable
import inspect

import optax

from jopd.run.config import check_arguments, did_you_mean

# (learning rate, steps) -> the schedule after warm-up.
_DECAYS = {
  'constant': lambda rate, steps: optax.constant_schedule(rate),
  'linear': lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
  'cosine': optax.cosine_decay_schedule,
}


def make_optimizer(stage) -> tuple[optax.GradientTransformation, Callable]:
  """The optimizer of a stage with clipping, and its learning rate by update.

  The rate of update t (from 0) is learning_rate * (t + 1) / (warmup_steps + 1)
  while it warms up, so that none is wasted on a rate of 0; after that it decays
  over the updates that are left of steps * updates.

  Args:
    stage: its settings; see `jopd.run.config.stage`.

  Raises:
    ValueError: optax has no such optimizer, or it no such argument, or the
      decay is unknown.
  """
  if stage.lr_schedule not in _DECAYS:
    raise ValueError(
      f'decay {stage.lr_schedule!r} is unknown{did_you_mean(stage.lr_schedule, _DECAYS)}'
    )
  remaining = max(1, stage.steps * stage.num_minibatches - stage.warmup_steps)
  decay = _DECAYS[stage.lr_schedule](stage.learning_rate, remaining)
  warmup = optax.linear_schedule(
    stage.learning_rate / (stage.warmup_steps + 1),
    stage.learning_rate,
    stage.warmup_steps,
  )
  rate = optax.join_schedules([warmup, decay], [stage.warmup_steps])
  arguments = dict(stage.optimizer)
  name = arguments.pop('name', '')
  known = {n for n, f in vars(optax).items() if _is_optimizer(n, f)}
  if name not in known:
    raise ValueError(
      f'optax has no optimizer {name!r}{did_you_mean(name, known)}'
    )
  optimizer = getattr(optax, name)
  parameters = dict(inspect.signature(optimizer).parameters)
  del parameters['learning_rate']
  check_arguments(arguments, parameters, f'optax.{name}')
  tx = optimizer(learning_rate=rate, **arguments)
  if stage.max_grad_norm:
    tx = optax.chain(optax.clip_by_global_norm(stage.max_grad_norm), tx)
  return tx, rate


def _is_optimizer(name: str, thing) -> bool:
  if not inspect.isfunction(thing) or name.startswith(('_', 'scale_by_')):
    return False
  return 'learning_rate' in inspect.signature(thing).parameters
