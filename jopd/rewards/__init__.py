"""Rewards: functions of a response and its example, on the host (floor 0).

A reward function is `(response, example, *, settings) -> number`, or named
parts that are summed, or None for an example that it cannot grade.
"""

from jopd.rewards.exact import boxed_match, exact_match
from jopd.rewards.grading import NoVerdictError, Response, Reward, grade
from jopd.rewards.math import math_match

__all__ = [
  'NoVerdictError',
  'Response',
  'Reward',
  'boxed_match',
  'exact_match',
  'grade',
  'math_match',
]
