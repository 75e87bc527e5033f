"""cryjax: self-supervised audio representation learning in JAX, for infant cry analysis."""

__version__ = "0.1.0"
