"""Heads: SimCLR's projection, for training only, and a linear classifier."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class ProjectionHead(nn.Module):
    """SimCLR's projection head (Chen et al., 2020): dense, ReLU, dense.

    Attributes:
      hidden: width of the hidden layer.
      features: width of the projection.
    """

    hidden: int
    features: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        """[batch, embedding] -> float32 [batch, features]."""
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(embedding.astype(jnp.float32)))
        return nn.Dense(self.features, name="projection")(x)


class Classifier(nn.Module):
    """A linear classifier.

    Attributes:
      classes: number of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        """[batch, embedding] -> float32 logits [batch, classes]."""
        return nn.Dense(self.classes, name="classifier")(embedding.astype(jnp.float32))
