"""How much each token counts: (TokenStats) -> [*B], under stop-gradient."""

from jopd.losses.weights.batches import (
  normalized,
  top_fraction,
  top_informative,
)
from jopd.losses.weights.groups import best_row, group_softmax
from jopd.losses.weights.rows import (
  ahead_of_disagreement,
  before_drop,
  freshness,
  prefix_importance,
)
from jopd.losses.weights.tokens import gate, importance, uniform

__all__ = [
  'ahead_of_disagreement',
  'before_drop',
  'best_row',
  'freshness',
  'gate',
  'group_softmax',
  'importance',
  'normalized',
  'prefix_importance',
  'top_fraction',
  'top_informative',
  'uniform',
]
