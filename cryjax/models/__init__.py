"""Encoders and heads, as Flax Linen modules."""

from cryjax.models.encoders import ENCODERS, make_encoder
from cryjax.models.heads import ProjectionHead

__all__ = ["ENCODERS", "ProjectionHead", "make_encoder"]
