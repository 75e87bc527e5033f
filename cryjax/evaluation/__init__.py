"""Evaluation: embeddings, probes, metrics with intervals, figures."""
