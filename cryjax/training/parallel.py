"""One step over many devices. Only this file names a mesh or creates a device axis.

The same pure step is wrapped three ways, chosen by one word:

- one device: `jit`;
- several, 'jit' (the default): `jit` of `shard_map` over a mesh of all devices of all processes;
- several, 'pmap': `pmap`, for those who want the classic form.

`shard_map` runs with `check_vma=False`. The step averages its own gradients with `pmean`, as under
`pmap`; with the check on, differentiation has summed them over devices already, and the result
would be device-count times too large without any error (jax-ml/jax, 'varying manual axes').
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
CHOICES = ("auto", "jit", "pmap")


class Parallel:
    """How a run uses its devices.

    Attributes:
      kind: 'jit' or 'pmap'.
      devices: how many take part, over all processes.
    """

    def __init__(self, kind: str = "auto", devices: list[jax.Device] | None = None):
        """Uses `devices`, or all there are."""
        if kind not in CHOICES:
            raise ValueError(f"parallel={kind!r}: take one of {', '.join(CHOICES)}")
        self.kind = "jit" if kind == "auto" else kind
        self._devices = list(devices or jax.devices())
        self.devices = len(self._devices)
        self._mesh = Mesh(np.asarray(self._devices), (AXIS,))
        self.processes = jax.process_count()

    def __str__(self) -> str:
        what = "jit" if self.devices == 1 and self.kind == "jit" else self.kind
        what = "jit of shard_map" if what == "jit" and self.devices > 1 else what
        return f"{what} over {self.devices} {self._devices[0].platform} device(s)"

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Where state lies: whole on every device."""
        return NamedSharding(self._mesh, P())

    def wrap(self, step: Callable) -> Callable:
        """The compiled step over all devices: `(state, batch, key) -> (state, metrics)`.

        Args:
          step: pure, with a keyword `axis_name`. Its state is donated: do not use it again.
        """
        if self.devices == 1 and self.kind == "jit":
            return jax.jit(step, donate_argnums=0)
        step = functools.partial(step, axis_name=AXIS)
        if self.kind == "pmap":
            return jax.pmap(
                step,
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=(None, None),
                devices=self._devices,
                donate_argnums=0,
            )
        sharded = jax.shard_map(
            step,
            mesh=self._mesh,
            in_specs=(P(), P(AXIS), P()),
            out_specs=(P(), P()),
            check_vma=False,
        )
        return jax.jit(sharded, donate_argnums=0)

    def replicate(self, tree: Any) -> Any:
        """Puts the same host values on every device."""
        if self.processes == 1:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)), tree
        )

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's part of a batch on its devices, each its share, in order."""
        if self.kind == "pmap":
            local = self.devices // self.processes
            return {
                name: x.reshape(local, x.shape[0] // local, *x.shape[1:])
                for name, x in batch.items()
            }
        sharding = NamedSharding(self._mesh, P(AXIS))
        return {
            name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()
        }
