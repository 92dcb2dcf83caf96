"""Rewards: a response as text to an outcome, on the host (floor 0)."""

from jopd.rewards.exact import boxed_match, exact_match
from jopd.rewards.math import math_match

__all__ = ['boxed_match', 'exact_match', 'math_match']
