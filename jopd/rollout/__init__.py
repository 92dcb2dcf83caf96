"""Rollouts: sample from a policy, and score what was sampled (floor 1).

Everything here takes a `Model` of pure functions and its parameters; nothing
knows a model class, a loss or an optimizer.
"""
