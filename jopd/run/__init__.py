"""From a config file to a run that can start."""
