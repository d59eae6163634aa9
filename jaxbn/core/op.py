"""An op: a kernel of the contract as a JAX primitive.

Derivatives are in `jaxbn.core.calculus`, the loops in `jaxbn.backends`.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxbn.backends import dispatch
from jaxbn.backends.contract import Gate, Kernels
from jaxbn.core import activation, interpreters, placement


def _spread(values, present):
    """The present values in their places, None in the others."""
    supply = iter(values)
    return [next(supply) if p else None for p in present]


@functools.lru_cache(maxsize=4096)
def _result_types(kernel: "Op", avals, params):
    call = kernel.function(dispatch.kernels(), **dict(params))
    with jax.disable_jit(False):  # a type has no value that a branch could look at
        return jax.make_jaxpr(call)(*avals).out_avals


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(primitive: Primitive, params, *operands):
    return primitive.bind(*operands, **dict(params))


Function = Callable[[Kernels], Callable]


class Op:
    """A JAX primitive on the kernels of an implementation, differentiated elsewhere.

    Operands that are absent are None, or left out at the end.

    Args:
        name: of the primitive.
        operands: their names.
        function: from an implementation to the function of operands and parameters.
            Default: the kernel of this name.
        meaning: the function where no rule is used for a derivative but the operations
            in it, if that is another one.
        has_loops: whether the function does more than hand on its operands, of which
            a compiled program would make copies.
    """

    def __init__(
        self,
        name: str,
        operands: tuple[str, ...],
        function: Function | None = None,
        meaning: Function | None = None,
        *,
        has_loops: bool = True,
    ):
        self.operands, self._has_loops = operands, has_loops
        self._function = function or operator.attrgetter(name)
        self._meaning = meaning or self._function
        self.primitive = primitive = Primitive(f"jaxbn_{name}")
        primitive.multiple_results = True
        primitive.def_impl(self._impl)
        primitive.def_abstract_eval(self._abstract_eval)
        batching.primitive_batchers[primitive] = self._batch
        mlir.register_lowering(primitive, self._lower)
        for platform in dispatch.PLATFORMS:
            rule = functools.partial(self._lower, platform=platform)
            mlir.register_lowering(primitive, rule, platform=platform)
        means = functools.partial(self._of_reference, meaning=True)
        interpreters.register(primitive, means)

    def function(self, kernels: Kernels, *, present, meaning=False, **params):
        """The function of the operands that are present."""
        kernel = (self._meaning if meaning else self._function)(kernels)

        def call(*operands):
            result = kernel(*_spread(operands, present), **params)
            return list(result) if isinstance(result, tuple) else [result]

        return call

    def __call__(self, *operands: Array | None, **params: Any) -> list[Array]:
        absent = [None] * (len(self.operands) - len(operands))
        present = tuple(operand is not None for operand in (*operands, *absent))
        given = share_types([o for o in operands if o is not None])
        return self.primitive.bind(*given, present=present, **params)

    def define_derivatives(self, jvp, transpose=None) -> None:
        """Registers rules that see None for absent operands.

        `jvp(primals, tangents, **params)` returns outputs and their tangents,
        `transpose(cotangents, *operands, **params)` one cotangent per operand.
        """

        def jvp_rule(primals, tangents, *, present, **params):
            primals, tangents = _spread(primals, present), _spread(tangents, present)
            return jvp(primals, tangents, **params)

        ad.primitive_jvps[self.primitive] = jvp_rule
        if transpose is None:
            return

        def transpose_rule(cotangents, *operands, present, **params):
            if all(isinstance(ct, ad.Zero) for ct in cotangents):
                return [None] * len(operands)
            results = transpose(cotangents, *_spread(operands, present), **params)
            return [r for r, p in zip(results, present, strict=True) if p]

        ad.primitive_transposes[self.primitive] = transpose_rule

    def _impl(self, *operands, **params):
        # Under `jax.disable_jit` the compiled call would come back here.
        with jax.disable_jit(False):
            # By operation, where a cache would keep the function of a user.
            if not (self._has_loops and activation.is_named(params.get("activation"))):
                return self._of_reference(**params)(*operands)
            return _compiled(self.primitive, tuple(sorted(params.items())), *operands)

    def _of_reference(self, *, implementation, **params):
        del implementation
        return self.function(dispatch.kernels(), **params)

    def _abstract_eval(self, *avals, implementation, **params):
        # Types do not depend on functions of the user, which no cache may keep.
        if params.get("activation") is not None:
            params["activation"] = jax.nn.relu
        return _result_types(self, avals, tuple(sorted(params.items())))

    def _lower(self, ctx, *operands, implementation, platform=None, **params):
        context = ctx.module_context
        kernels = dispatch.kernels(
            implementation,
            platform,
            devices=_partitions(context),
            exported=_is_exported(context),
        )
        call = self.function(kernels, **params)
        return mlir.lower_fun(call, multiple_results=True)(ctx, *operands)

    def _batch(self, operands, dims, *, present, axes, **params):
        names = [n for n, p in zip(self.operands, present, strict=True) if p]
        batch, its = next(
            pair for pair in zip(operands, dims, strict=True) if pair[1] is not None
        )

        def lead(name, operand, dim):
            operand = jnp.asarray(operand)  # `vmap` hands on arrays of NumPy
            if dim is not None:
                return jnp.moveaxis(operand, dim, 0)
            if name == "where":
                return operand[None]
            wide = jnp.broadcast_to(operand[None], (batch.shape[its], *operand.shape))
            return placement.leading(wide, batch, its)

        operands = map(lead, names, operands, dims)
        axes = (0, *(axis + 1 for axis in axes))
        params = {name: _mapped(value) for name, value in params.items()}
        results = self.primitive.bind(*operands, present=present, axes=axes, **params)
        return results, [0] * len(results)


def _mapped(value: Any) -> Any:
    """A parameter of an op for operands with one more axis in front."""
    if isinstance(value, Gate):
        return value._replace(activation=activation.mapped(value.activation))
    return activation.mapped(value) if callable(value) else value


def _is_exported(context: mlir.ModuleContext) -> bool:
    """Tells whether the program is for a process that may not know an opaque kernel."""
    return context.lowering_parameters.for_export


def _partitions(context: mlir.ModuleContext) -> int:
    """The number of devices over which XLA partitions the program.

    It would gather what an opaque kernel reads. With one device it does nothing: the
    program runs on arrays of the shapes traced.
    """
    axes = context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices
    if not isinstance(axes, mlir.SPMDAxisContext):
        return 2  # a program of which nothing is known
    shape = axes.mesh.shape.items()
    return math.prod(n for name, n in shape if name not in axes.manual_axes)


def share_types(operands: list[Array]) -> list[Array]:
    """Casts all operands to vary over every mesh axis that any of them varies over.

    Without it a replicated `scale` inside `shard_map` meets a varying `x` in one
    primitive, and its gradient is not summed over the devices.
    """
    varying = frozenset().union(*map(varying_axes, operands))

    def cast(operand):
        missing = tuple(sorted(varying - varying_axes(operand)))
        return lax.pcast(operand, missing, to="varying") if missing else operand

    return [cast(operand) for operand in operands] if varying else operands


def varying_axes(operand: Array) -> frozenset[str]:
    """The manual mesh axes over which `operand` may differ between devices."""
    return frozenset(jax.typeof(operand).manual_axis_type.varying)
