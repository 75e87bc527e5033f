"""Figures that a run writes as PNG, one module per topic."""
