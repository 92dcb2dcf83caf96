"""Training: state, step, loop, checkpoint, metrics (floor 2)."""
