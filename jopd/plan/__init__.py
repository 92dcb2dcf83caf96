"""Memory and time of a run, from the compiler, before weights are loaded."""
