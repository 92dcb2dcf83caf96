"""Examines a config before training: can this pair, data and loss work?"""
