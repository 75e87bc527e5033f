"""Weights as stored in a file: in full, in half the bytes, or in a quarter.

This affects storage only: whatever reads them computes in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("float32", "float16", "int8")


class Int8(NamedTuple):
    """A kernel in eight bits, with a scale per output: `values * scale` is the kernel."""

    values: np.ndarray
    scale: np.ndarray


def store(weight: np.ndarray, kind: str, axis: int = -1) -> np.ndarray | Int8:
    """Stores a weight as `kind`. Vectors stay float32: few, and everything depends on them.

    Args:
      weight: float32.
      kind: of `KINDS`.
      axis: of a kernel's outputs.
    """
    weight = np.asarray(weight)
    if weight.ndim < 2 or kind == "float32":
        return weight
    if kind == "float16":
        return weight.astype(np.float16)
    others = tuple(a for a in range(weight.ndim) if a != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
    return Int8(np.rint(weight / scale).astype(np.int8), scale)


def restore(weight: jax.Array | Int8) -> jax.Array:
    """Restores a stored weight to float32; for use under jit."""
    if isinstance(weight, Int8):
        return jnp.asarray(weight.values).astype(jnp.float32) * weight.scale
    return jnp.asarray(weight).astype(jnp.float32)
