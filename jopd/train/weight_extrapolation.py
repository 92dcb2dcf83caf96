"""How far to go beyond what was learnt: (step, scores) -> how much further.

Let D be the way of the parameters since the last look. A rule is asked after
each step of a stage, first with no scores: None says that this is no time to
look, 0.0 that the student be scored as it is. Then the answer is where to look
next, in multiples of D beyond the student, or None to end; the best is kept,
and the next D begins there. Pure host arithmetic: the loop moves and scores.
"""

from collections.abc import Callable, Sequence

import jax


def line_search(
  step: int, scores: Sequence, *, reach: float = 2.0, most: int = 5
) -> float | None:
  """At steps 1, 2, 4, 8, ...: further by `reach` D while the score improves.

  Args:
    step: batches of prompts that the stage has learnt, this one included.
    scores: of the student as it is, then of each place looked at; larger is
      better.
    reach: distance from one place to the next, in D.
    most: places that are looked at.

  Returns:
    Where to look, in D beyond the student, 0.0 at first; None to look no more.

  Raises: ValueError when reach is not above 0, or most below 1.
  References: EffOPD, arXiv 2605.11739, after its released code. There the
    factor is 2, then a <- a / (1 + a) of a way that has grown: the same places.
    Steps are those of the optimizer there; here, with several updates a step,
    those of the stage.

  Example: the third place is no better than the second.
    >>> line_search(4, []), line_search(5, [])
    (0.0, None)
    >>> line_search(4, [0.5]), line_search(4, [0.5, 0.6, 0.7])
    (2.0, 6.0)
    >>> line_search(4, [0.5, 0.6, 0.7, 0.7])
  """
  if not reach > 0 or most < 1:
    raise ValueError(
      f'reach must be above 0 and most at least 1, got {reach} and {most}'
    )
  if step & (step - 1):  # no power of two
    return None
  if not scores:
    return 0.0
  tries = len(scores) - 1
  if tries == most or (tries > 0 and scores[-1] <= scores[-2]):
    return None
  return reach * (tries + 1)


def look(rule: Callable, step: int, score: Callable) -> tuple[float, dict]:
  """Where the score is best, of the places that a rule looks at.

  Args:
    rule: function of this room, its settings bound.
    step: batches of prompts that the stage has learnt.
    score: from multiples of D beyond the student to a number.

  Returns:
    The best place, the nearest of equal ones; 0.0 is the student as it is. And
    what was seen, {} where it was no time to look: the score before and
    after, how many places were looked at and how many of D were gone.

  Example:
    >>> look(line_search, 2, lambda further: min(further, 4.0))[0]
    4.0
  """
  places, scores = [], []
  while (further := rule(step, scores)) is not None:
    places.append(further)
    scores.append(float(score(further)))
  if not scores:
    return 0.0, {}
  best = max(range(len(scores)), key=scores.__getitem__)
  return places[best], dict(
    score_before=scores[0],
    score_after=scores[best],
    looked=float(len(scores) - 1),
    further=places[best],
  )


def extrapolate(params: dict, origin: dict, further) -> dict:
  """Goes on: params + further * (params - origin), of attention and MLPs alone.

  Args:
    params: of the student.
    origin: the same at the last look.
    further: how far, may be traced.

  Returns:
    The parameters there. Those of embeddings, heads and norms stay, and so does
    every one that has not moved.

  References: EffOPD, arXiv 2605.11739: the modules that its code moves.

  Example:
    >>> tree = lambda x: {'mlp': {'up': x}, 'norm': x}
    >>> extrapolate(tree(2.0), tree(1.5), 4.0)
    {'mlp': {'up': 4.0}, 'norm': 2.0}
  """

  def one(path, own, old):
    names = {getattr(key, 'key', None) for key in path}
    moves = names & {'attention', 'mlp'} and not names & {'scale'}
    return own + further * (own - old) if moves else own

  return jax.tree.map_with_path(one, params, origin)
