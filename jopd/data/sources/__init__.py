"""Sources: random-access sequences of `Example`.

Each function here returns a sequence, anything with a length and an item per
index, so that large data need not be held. To add a source, write a function
that returns a list of examples. A row that cannot be one is a `Rejected` in
its place: it is counted and written down, and the run goes on.
"""

from jopd.data.sources.files import jsonl, tfds
from jopd.data.sources.mathematics import (
  aime,
  amc,
  dapo_math,
  gsm8k,
  hendrycks_math,
  math500,
  openthoughts,
)
from jopd.data.sources.tasks import blend, running_sum, shift

__all__ = [
  'aime',
  'amc',
  'blend',
  'dapo_math',
  'gsm8k',
  'hendrycks_math',
  'jsonl',
  'math500',
  'openthoughts',
  'running_sum',
  'shift',
  'tfds',
]
