"""Accuracy of a policy, with intervals."""
