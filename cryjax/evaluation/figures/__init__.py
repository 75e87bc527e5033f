"""Figures that a run leaves behind, as PNG, each file those of one thing."""
