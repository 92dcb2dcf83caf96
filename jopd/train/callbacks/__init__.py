"""Callbacks: what one method needs around the steps of a stage.

A callback of a config is a function `(setup, *, settings) -> Callback`. The
loop calls every callback and knows none by name, those last that read what
others add to the metrics. What a callback must
remember is kept in the checkpoint.
"""

from jopd.train.callbacks.base import Callback, Setup, StepContext
from jopd.train.callbacks.controllers import adaptive_kl, staged_curriculum
from jopd.train.callbacks.held_out import measure_held_out
from jopd.train.callbacks.replay_buffer import fixed_staleness, replay_buffer
from jopd.train.callbacks.samples import log_samples

__all__ = [
  'Callback',
  'Setup',
  'StepContext',
  'adaptive_kl',
  'fixed_staleness',
  'log_samples',
  'measure_held_out',
  'replay_buffer',
  'staged_curriculum',
]
