"""Waveform mathematics under jit: the log-mel front end and the augmentations. Pure functions."""
