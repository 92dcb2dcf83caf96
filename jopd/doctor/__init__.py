"""What can be known before training: can this pair, data and loss work?

A room above `build`, because it examines what a config becomes.
"""
