"""Encoders and heads, as Flax Linen modules."""

from cryjax.models.encoders import ENCODERS, make_encoder
from cryjax.models.heads import Classifier, ProjectionHead

__all__ = ["ENCODERS", "Classifier", "ProjectionHead", "make_encoder"]
