"""Sources: random-access sequences of `Example`.

Each function here returns a sequence: anything with a length and an item per
index, so that large data need not be in memory. Your own source is a function
that returns a list or an iterator of `Example`, or of rows (mappings) with the
columns prompt, answer and response; see `rows.make_examples`. A row that cannot
be an example is `Rejected`: counted, written down and left out.
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
