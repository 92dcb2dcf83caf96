"""What a run will need, by the compiler, before any weight is loaded."""
