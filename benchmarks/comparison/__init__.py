"""Published variants beside plain distillation, on the same models and budget.

Plain are three: the reverse KL over the vocabulary, the same by the sampled
token, and the control that knows no teacher.
"""
