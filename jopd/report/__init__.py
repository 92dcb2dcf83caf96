"""Diagnosis: what a run says about itself, in pictures (floor 2)."""
