"""Scores of made-up classifiers, and the true classes."""

import numpy as np


def example(seed=0, recordings=60, classes=3, subjects=12):
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=recordings)
    scores = rng.normal(size=(recordings, classes)).round(1)  # rounded: ties occur
    scores[np.arange(recordings), true] += 0.8
    return true, scores, rng.integers(subjects, size=recordings), rng


def example_of_many(seed=0, recordings=120, classes=4, subjects=20):
    """Multi-label targets, each class rarer than the one before, and probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.random((recordings, classes)) < 0.6 / np.arange(1, classes + 1)
    scores = 1 / (1 + np.exp(1.0 - 2.0 * true - rng.normal(size=true.shape)))
    return true, scores.round(2), rng.integers(subjects, size=recordings), rng


def softmax(logits):
    risen = np.exp(logits - logits.max(axis=1, keepdims=True))
    return risen / risen.sum(axis=1, keepdims=True)
