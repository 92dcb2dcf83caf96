"""Training: stages, their phases and steps, checkpoints, metrics (floor 2)."""
