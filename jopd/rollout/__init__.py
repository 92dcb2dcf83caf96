"""Rollouts: samples responses from a policy, and scores given responses.

Functions take a `Model` or a `Policy` and its parameters. They use no model
class, loss or optimizer.
"""
