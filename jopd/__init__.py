"""On-policy distillation of language models in JAX, all on one mesh.

The losses stand alone: `from jopd import losses` imports jax and jaxtyping and
nothing else. Everything above them is reached by its module, for instance
`from jopd.rollout import sampler`.
"""

__version__ = '0.1.0'
