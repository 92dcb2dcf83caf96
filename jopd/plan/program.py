"""A program compiled from shapes, and what it needs."""

from typing import NamedTuple

import jax

from jopd.plan import flops, hlo, inputs


class Phase(NamedTuple):
  """One program of a step: its memory and its work on a device.

  Attributes:
    name: 'prefill', 'decode' (one token in every slot), 'teacher', 'learner'.
    times: runs per step, if every response has the maximal length.
    memory: kind -> bytes of a device while it runs. 'held': state and teachers,
      which stay through the stage; 'inputs': what else it reads; 'results': its
      outputs; 'temporaries': freed when it ends.
    flops: operations of matrix products, of all devices.
    kernels: the part of them in Pallas kernels, for which the compiler gives no
      time.
    useful: the part of them that is not recomputed: of a forward pass, and
      twice as many of a backward pass.
    least: bytes that a device must read: its part of weights and caches, once.
      None if these are few compared with the activations.
    cost: of a device; see `hlo.cost`.
    seconds: compilation time.
  """

  name: str
  times: int
  memory: dict[str, float]
  flops: float
  kernels: float
  useful: float
  least: float | None
  cost: hlo.Cost
  seconds: float


class TooLarge(Exception):
  """A phase does not fit: its name, and the message of the compiler."""


class Compiled(NamedTuple):
  """A program that was compiled from shapes."""

  args: tuple
  traced: jax.stages.Traced
  compiled: jax.stages.Compiled
  seconds: float

  @property
  def results(self):
    """Shapes of its results, with the shardings that the compiler chose."""
    return inputs.place(self.traced.out_info, self.compiled.output_shardings)

  def phase(
    self, name, times, held, more, *, useful=None, least=None, turns=1, grown=0
  ) -> Phase:
    """The phase of this program.

    Args:
      name, times, least: of the phase.
      held: bytes that stay, whether it reads them or not.
      more: its other inputs.
      useful: operations; all of them by default.
      turns: iterations of its loops whose number depends on the data.
      grown: bytes that exist for a moment, outside of the program.
    """
    memory = self.compiled.memory_analysis()
    operations = flops.count(self.traced, turns=turns)
    temporaries = (
      memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )
    return Phase(
      name,
      times,
      dict(
        held=held,
        inputs=inputs.local_bytes(more),
        # Results that take the place of arguments need no more room.
        results=max(
          0.0, memory.output_size_in_bytes - memory.alias_size_in_bytes
        ),
        temporaries=float(max(temporaries, grown)),
      ),
      operations,
      flops.count(self.traced, turns=turns, kernels=True),
      operations if useful is None else useful,
      least,
      hlo.cost(self.compiled.as_text(), turns=turns),
      self.seconds,
    )
