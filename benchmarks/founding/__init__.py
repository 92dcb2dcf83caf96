"""The findings of the founding papers, one module each, as runs of jopd.

A module has a docstring (claim, set-up, source), SIGNATURE (statements that
must hold), `measure(lab) -> rows` (variant -> name -> number, for one seed)
and `judge(rows) -> list of bool`, one for each statement. SHOWN names the
numbers of its table, the first of which is drawn; CURVES asks for the curves of
its runs, too.
"""

from founding import (
  cold_student,
  eos,
  fixed_point,
  gamma,
  opsd,
  prompts,
  reverse,
  stranger,
  topk_bias,
  variance,
)

FINDINGS = {
  module.__name__.partition('.')[2]: module
  for module in (
    fixed_point,
    topk_bias,
    cold_student,
    variance,
    gamma,
    opsd,
    eos,
    stranger,
    reverse,
    prompts,
  )
}
