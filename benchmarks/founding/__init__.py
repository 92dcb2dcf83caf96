"""The findings of the founding papers, one module each, as runs of jopd.

A module has a docstring (claim, set-up, source), SIGNATURE (what must come out,
as statements), `measure(lab) -> rows` (variant -> name -> number, for one seed)
and `judge(rows) -> list of bool`, one for each statement. SHOWN is the number
that its picture shows, if not the accuracy; CURVES asks for those of its runs.
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
