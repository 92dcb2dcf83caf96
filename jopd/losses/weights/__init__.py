"""How much each token counts: (TokenStats) -> [*B], under stop-gradient."""

from jopd.losses.weights.batches import top_fraction
from jopd.losses.weights.tokens import gate, importance, uniform

__all__ = ['gate', 'importance', 'top_fraction', 'uniform']
