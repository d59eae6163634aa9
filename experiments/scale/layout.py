"""The placement of arrays, and of a step, on the devices.

    jit         one program for all examples; the compiler places the collectives
    explicit    the same, and shardings are part of the types
    shard_map   one program per device, with a named axis
    pmap        the same, as it was written before meshes

All four take and return the same arrays: a state that every device holds (or, with
`model_devices`, a part of), and a batch whose examples are split over the mesh axis
"data".
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.common.errors import UserError
from experiments.scale import config

DATA, MODEL = "data", "model"
P = PartitionSpec

# Optimizing a program that runs once takes longer than running it.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


class Layout(NamedTuple):
    """A mesh and the way of using it.

    Attributes:
        parallel: "jit", "explicit", "shard_map" or "pmap".
        mesh: axes "data" and "model".
    """

    parallel: str
    mesh: Mesh

    @property
    def data_devices(self) -> int:
        """Devices among which a batch is split."""
        return self.mesh.shape[DATA]

    @property
    def axis_name(self) -> str | None:
        """Name of the axis of the examples inside a step, if it has one."""
        return DATA if self.parallel in ("shard_map", "pmap") else None

    def rows_of_a_device(self, batch_size: int) -> int:
        """Returns examples per device; `UserError` if they do not come out even."""
        rows, rest = divmod(batch_size, self.data_devices)
        if rest or not rows:
            raise UserError(
                f"`--batch-size` must be a multiple of {self.data_devices}, the number "
                f"of devices that share it, got {batch_size}. Pass another one."
            )
        return rows

    def shardings(self, state: Any) -> Any:
        """Returns where each array of `state` lies: a tree like it."""
        return jax.tree.map(lambda leaf: self._sharding(leaf.shape), state)

    def shapes(self, function: Callable[[jax.Array], Any]) -> Any:
        """Returns what `init` would, as shapes, dtypes and shardings."""
        made = jax.eval_shape(function, jax.random.key(0))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            made,
            self.shardings(made),
        )

    def init(self, function: Callable[[jax.Array], Any], seed: int) -> Any:
        """Returns `function(key)`, placed; the same values on any mesh."""
        key = jax.random.key(seed)
        shardings = self.shardings(jax.eval_shape(function, key))
        # Compiled with automatic axes, where every initializer works.
        automatic = Mesh(self.mesh.devices, self.mesh.axis_names)
        made = jax.jit(
            function,
            out_shardings=jax.tree.map(
                lambda s: NamedSharding(automatic, s.spec), shardings
            ),
            compiler_options=_RUN_ONCE,
        )(key)
        return jax.tree.map(_relabel, made, shardings)

    def put_batch(self, batch: dict) -> dict:
        """Returns the global batch, of the rows that each process holds.

        Args:
            batch: arrays (rows of this process, ...), in the order of the processes.
        """
        sharding = NamedSharding(self.mesh, P(DATA))
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }

    def batch_shapes(self, rows: int, image: tuple[int, int, int], dtype: Any) -> dict:
        """Returns the shapes of a batch of `rows` images, placed as by `put_batch`."""
        sharding = NamedSharding(self.mesh, P(DATA))
        return {
            "image": jax.ShapeDtypeStruct((rows, *image), dtype, sharding=sharding),
            "label": jax.ShapeDtypeStruct((rows,), "int32", sharding=sharding),
        }

    def spread(self, step: Callable[[Any, dict], tuple[Any, Any]], state: Any) -> Any:
        """Returns the compiled form of `step(state, batch) -> (state, metrics)`.

        The state given to it must not be used again.
        """
        if self.parallel == "pmap":
            return self._pmapped(step)
        if self.parallel == "shard_map":
            step = jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=(P(), P(DATA)),
                out_specs=P(),
            )
        return jax.jit(
            self._within(step),
            donate_argnums=0,
            out_shardings=(self.shardings(state), None),
        )

    def reduce(self, function: Callable[[Any, dict], Any]) -> Any:
        """Returns the compiled form of `function(variables, batch)`, of sums.

        The program sees all examples in every way of training.
        """
        return jax.jit(self._within(function))

    def _within(self, function):
        # Explicit axes need to know their mesh while a function is traced.
        if self.parallel != "explicit":
            return function

        @functools.wraps(function)
        def wrapped(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return wrapped

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        size = self.mesh.shape[MODEL]
        if size == 1 or not shape or shape[-1] % size:
            return NamedSharding(self.mesh, P())
        # Features last: convolutions, dense layers, scales and statistics alike.
        return NamedSharding(self.mesh, P(*[None] * (len(shape) - 1), MODEL))

    def _pmapped(self, step):
        devices = list(self.mesh.devices[:, 0])
        mapped = jax.pmap(
            step,
            axis_name=DATA,
            in_axes=(None, 0),
            out_axes=None,
            devices=devices,
        )
        everywhere = NamedSharding(self.mesh, P())

        def call(state, batch):
            local = jax.tree.map(_local_copy, state)
            rows = jax.tree.map(_rows_of_each_device, batch)
            return jax.tree.map(
                lambda leaf: _replicate(np.asarray(_local_copy(leaf)), everywhere),
                mapped(local, rows),
            )

        return call


def make_layout(
    devices: config.Devices, *, found: Sequence[Any] | None = None
) -> Layout:
    """Returns the layout of `found`, by default all devices of all processes."""
    found = jax.devices() if found is None else found
    count, share = len(found), devices.model_devices
    if count % share:
        raise UserError(
            f"`--model-devices` must divide the number of devices, {count}, got "
            f"{share}. Pass another number."
        )
    kind = AxisType.Explicit if devices.parallel == "explicit" else AxisType.Auto
    # In the order of the processes, so that each one holds consecutive examples.
    ordered = sorted(found, key=lambda d: (d.process_index, d.id))
    grid = np.array(ordered).reshape(count // share, share)
    mesh = Mesh(grid, (DATA, MODEL), axis_types=(kind, kind))
    return Layout(devices.parallel, mesh)


def simulated(count: int) -> list[Any]:
    """Returns `count` devices that a CPU pretends to be.

    Raises:
        UserError: if there are fewer, because JAX was told so before.
    """
    with contextlib.suppress(RuntimeError):  # the devices are known already
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise UserError(
            f"`--devices` must be at most {len(found)}, the number of simulated "
            f"devices, got {count}. Unset XLA_FLAGS and JAX_NUM_CPU_DEVICES."
        )
    return found[:count]


def _relabel(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_single_device_arrays(
        array.shape, sharding, [shard.data for shard in array.addressable_shards]
    )


def _local_copy(array: jax.Array) -> jax.Array:
    return array.addressable_data(0)


def _rows_of_each_device(array: jax.Array) -> np.ndarray:
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.stack([np.asarray(shard.data) for shard in shards])


def _replicate(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    parts = [jax.device_put(value, d) for d in sharding.addressable_devices]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)
