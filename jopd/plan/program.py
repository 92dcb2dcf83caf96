"""A program compiled from shapes, and what it will need."""

from typing import NamedTuple

import jax

from jopd.plan import flops, hlo, inputs


class Phase(NamedTuple):
  """One program of a step: what a device needs for it, and does in it.

  Attributes:
    name: 'prefill', 'decode' (one token in every slot), 'teacher', 'learner'.
    times: how often it runs in a step, if every response is as long as can be.
    memory: kind -> bytes of a device while it runs. 'held': state and teachers,
      which stay through the stage; 'inputs': what else it reads; 'results':
      what it leaves; 'temporaries': what is gone when it ends.
    flops: operations of matrix products, of all devices.
    kernels: those of them that are in Pallas kernels, of which the compiler
      does not say how long they take.
    useful: those of them that the mathematics asks for: of a forward pass, and
      twice as many of a backward pass, but nothing that is recomputed.
    least: bytes that a device must read: its share of weights and caches, once.
      None where these are few beside the activations.
    cost: of a device; see `hlo.cost`.
    seconds: that compiling took.
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
  """The compiler finds no room: the name of a phase, and what it says."""


class Compiled(NamedTuple):
  """A program that was compiled from shapes."""

  args: tuple
  traced: jax.stages.Traced
  compiled: jax.stages.Compiled
  seconds: float

  @property
  def results(self):
    """Shapes of what it returns, where the compiler puts them."""
    return inputs.place(self.traced.out_info, self.compiled.output_shardings)

  def phase(
    self, name, times, held, more, *, useful=None, least=None, turns=1, grown=0
  ) -> Phase:
    """What is known of it.

    Args:
      name, times, least: of the phase.
      held: bytes that stay, whether it reads them or not.
      more: what it reads beside them.
      useful: operations; all of them by default.
      turns: of its loops whose turns depend on the data.
      grown: bytes that are there for a moment, outside of the program.
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
