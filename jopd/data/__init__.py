"""Data on the host: sources, prompts, contexts, batches (floor 0).

A source is a random-access sequence of `Example`; everything after it is text
to token ids to fixed shapes. Nothing here touches an accelerator.
"""
