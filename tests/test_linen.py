"""jaxbn.linen.BatchNorm is flax.linen.BatchNorm, where flax is right."""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import CASES, DEVICES, KEY, Case, assert_close, normal
from flax import linen as nn
from flax import serialization
from jax.sharding import PartitionSpec as P

import jaxbn
import jaxbn.linen

OURS, FLAX = jaxbn.linen.BatchNorm, nn.BatchNorm
LINEN_CASES = CASES | {
    "axes": Case((6, 4, 5, 3), options={"axis": (1, -1)}),
    "complex": Case(dtype=jnp.complex64),
    "complex-d32": Case(dtype=jnp.complex64, options={"dtype": jnp.float32}),
    "narrow": Case(
        dtype=jnp.bfloat16,
        options={"force_float32_reductions": False, "param_dtype": jnp.bfloat16},
        rounded=jnp.bfloat16,
    ),
    "narrow-state": Case(
        options={"force_float32_reductions": False, "param_dtype": jnp.bfloat16},
        rounded=jnp.bfloat16,
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def start(module, x):
    return module.init(KEY, x, False)


@functools.partial(jax.jit, static_argnums=0)
def train(module, variables, x, **call):
    """The result of a step in training and the variables after it."""
    y, changed = module.apply(variables, x, False, mutable="batch_stats", **call)
    return y, {**variables, **changed}


@functools.partial(jax.jit, static_argnums=0)
def evaluate(module, variables, x):
    return module.apply(variables, x, True)


def trained(module, x, steps=3, **call):
    variables = start(module, x)
    for _ in range(steps):
        _, variables = train(module, variables, x, **call)
    return variables


def stats(variables):
    return variables["batch_stats"]


@functools.partial(jax.jit, static_argnums=0)
def differentiate(module, variables, x, **call):
    """A step in training with the gradients of a loss in parameters and input."""

    def loss(params, x):
        y, after = train(module, {**variables, **params}, x, **call)
        wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return jnp.sum(jnp.sin(wide.real + wide.imag)), (y, after)

    params = {name: variables[name] for name in variables if name != "batch_stats"}
    inputs = (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    gradients, (y, after) = jax.grad(loss, inputs, has_aux=True)(params, x)
    return y, after, gradients


@functools.cache
def results(kind, name):
    """Everything that training a layer for three steps gives."""
    case = LINEN_CASES[name]
    module, x = kind(**case.options), case.x
    before = variables = start(module, x)
    for i in range(3):
        y, variables, gradients = differentiate(module, variables, x + i, **case.call)
    return {
        "start": before,
        "values": y,
        "statistics": stats(variables),
        "evaluation": evaluate(module, variables, x),
        "gradients": gradients,
    }


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("name", [n for n in LINEN_CASES if n != "complex"])
def test_variables_at_the_start_equal_those_of_flax(name):
    got, want = results(OURS, name)["start"], results(FLAX, name)["start"]
    assert_close(got, want, 0)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("what", ["values", "statistics", "evaluation", "gradients"])
@pytest.mark.parametrize("name", LINEN_CASES)
def test_results_equal_those_of_flax(name, what):
    got, want = results(OURS, name)[what], results(FLAX, name)[what]
    assert_close(got, want, LINEN_CASES[name].tolerance)


def test_the_mean_of_complex_input_is_complex_from_the_start():
    start_of_it = results(OURS, "complex")["start"]["batch_stats"]
    assert [v.dtype for v in start_of_it.values()] == [jnp.complex64, jnp.float32]


def test_float64_results_equal_those_of_flax():
    with jax.enable_x64(True):
        x = normal((16, 4)).astype(jnp.float64)
        ours, want = OURS(), FLAX()
        variables = start(want, x)
        assert_close(start(ours, x), variables, 0)
        assert_close(train(ours, variables, x), train(want, variables, x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("debias", [True, False])
def test_types_of_variables_do_not_change_in_training(dtype, debias):
    module, x = OURS(debias=debias), normal((8, 3), dtype)
    before = start(module, x)
    _, after = jax.eval_shape(lambda v: train(module, v, x), before)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


@pytest.mark.parametrize("writer, reader", [(OURS, FLAX), (FLAX, OURS)])
def test_a_checkpoint_of_one_loads_in_the_other(writer, reader):
    x = normal((16, 4))
    saved = trained(writer(), x)
    target = start(reader(), x)
    loaded = serialization.from_bytes(target, serialization.to_bytes(saved))
    assert_close(evaluate(reader(), loaded, x), evaluate(writer(), saved, x))


# --- signatures, modes, errors -------------------------------------------------------


def test_the_constructor_takes_the_arguments_of_flax_in_the_same_positions():
    ours = [f.name for f in dataclasses.fields(OURS)]
    want = [f.name for f in dataclasses.fields(FLAX)]
    want = [name for name in want if name not in ("parent", "name")]
    assert ours[: len(want)] == want


def test_the_defaults_of_the_constructor_are_those_of_flax():
    ours, want = OURS(), FLAX()
    for field in dataclasses.fields(FLAX):
        assert getattr(ours, field.name) == getattr(want, field.name), field.name


def test_the_call_takes_the_arguments_of_flax_in_the_same_positions():
    ours = list(inspect.signature(OURS.__call__).parameters)
    want = list(inspect.signature(FLAX.__call__).parameters)
    assert ours[: len(want)] == want


@pytest.mark.parametrize("both", [None, True])
def test_a_mode_given_never_or_twice_is_the_error_of_flax(both):
    x = normal((4, 2))
    with pytest.raises(ValueError) as want:
        FLAX(both).init(KEY, x, both)
    with pytest.raises(ValueError, match=re.escape(str(want.value))):
        OURS(both).init(KEY, x, both)


def test_training_with_immutable_statistics_is_the_error_of_flax():
    x = normal((4, 2))
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        OURS().apply(start(OURS(), x), x, use_running_average=False)


def test_evaluation_changes_no_statistics():
    x = normal((4, 2))
    variables = trained(OURS(), x)
    _, changed = OURS(True).apply(variables, x, mutable="batch_stats")
    chex.assert_trees_all_equal(stats(changed), stats(variables))


def test_init_does_not_update_the_running_statistics():
    variables = start(OURS(), normal((4, 2)) + 5)
    want = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    chex.assert_trees_all_equal(stats(variables), want)


def test_init_outside_a_mesh_needs_no_bound_axis():
    x = normal((4, 2))
    module = OURS(axis_name="d", axis_groups=((0, 1), (2, 3)))
    chex.assert_trees_all_equal(start(module, x), start(OURS(), x))


@pytest.mark.parametrize("check_vma", [True, False])
def test_init_inside_a_mesh_equals_init_outside(check_vma):
    x = normal((DEVICES, 3))
    module = OURS(axis_name="d")
    inside = jax.jit(
        jax.shard_map(
            lambda x: module.init(KEY, x, False),
            mesh=jax.make_mesh((DEVICES,), ("d",)),
            in_specs=P("d"),
            out_specs=P(),
            check_vma=check_vma,
        )
    )
    x = jax.device_put(x, jax.NamedSharding(jax.make_mesh((DEVICES,), ("d",)), P("d")))
    chex.assert_trees_all_equal(
        jax.device_get(inside(x)), start(OURS(), normal((1, 3)))
    )


def test_an_unbound_axis_name_is_an_error_outside_init():
    module, x = OURS(axis_name="d"), normal((4, 2))
    with pytest.raises(ValueError, match="`axis_name` must be bound here"):
        train(module, start(module, x), x)


def test_partitioned_initializers_keep_their_metadata():
    module = OURS(False, scale_init=nn.with_partitioning(nn.initializers.ones, ("c",)))
    variables = module.init(KEY, normal((4, 2)))
    assert nn.get_partition_spec(variables)["params"]["scale"] == P("c")


# --- new arguments -------------------------------------------------------------------


def test_evaluation_after_one_debiased_step_equals_training():
    x = normal((64, 3)) + 10
    module = OURS(debias=True)
    y, variables = train(module, start(module, x), x)
    assert_close(evaluate(module, variables, x), y)


def test_debias_adds_a_count_in_float32_with_the_shape_of_the_features():
    variables = trained(OURS(debias=True), normal((4, 2), jnp.bfloat16), steps=2)
    assert_close(stats(variables)["count"], jnp.full(2, 2.0, jnp.float32), 0)


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}])
def test_a_checkpoint_without_count_is_evaluated_but_not_restarted(options):
    x = normal((16, 4))
    saved = trained(FLAX(), x)
    want = evaluate(FLAX(), saved, x)
    assert_close(evaluate(OURS(**options), saved, x), want)
    with pytest.raises(ValueError, match="`variables` must have a 'count' beside"):
        train(OURS(**options), saved, x)
    count = jnp.full(4, 1000.0)
    stats = {**saved["batch_stats"], "count": count}
    _, after = train(OURS(**options), {**saved, "batch_stats": stats}, x)
    np.testing.assert_array_equal(after["batch_stats"]["count"], count + 1)


def test_momentum_none_averages_all_batches_equally():
    module, batches = OURS(momentum=None), normal((5, 16, 2))
    variables = start(module, batches[0])
    for x in batches:
        _, variables = train(module, variables, x)
    assert_close(stats(variables)["mean"], batches.mean((0, 1)))


def test_unbiased_stores_the_variance_over_n_minus_one():
    x = normal((4, 2))
    variables = trained(OURS(momentum=0.0, unbiased=True), x, steps=1)
    assert_close(stats(variables)["var"], jnp.var(x, 0, ddof=1))


def test_unbiased_can_be_initialized_with_one_value_per_channel():
    x = normal((1, 2))
    chex.assert_trees_all_equal(start(OURS(unbiased=True), x), start(OURS(), x))


def test_flax_defect_d15_a_nonfinite_batch_is_kept_out_of_the_running_statistics():
    module, x = OURS(skip_nonfinite=True), normal((4, 2))
    before = trained(module, x)
    _, after = train(module, before, x.at[0, 0].set(jnp.inf))
    chex.assert_trees_all_equal(stats(after), stats(before))


@pytest.mark.parametrize("inference", [True, False])
def test_activation_and_residual_are_applied_to_the_result(inference):
    x, residual = normal((8, 3)), normal((8, 3), seed=1)
    variables = start(OURS(), x)

    def apply(activation, **call):
        module = OURS(inference, activation=activation)
        return module.apply(variables, x, mutable="batch_stats", **call)[0]

    want = nn.relu(apply(None) + residual)
    assert_close(apply("relu", residual=residual), want)


@pytest.mark.parametrize("inference", [True, False])
def test_the_implementation_is_passed_on(inference):
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        OURS(inference, implementation="abacus").init(KEY, normal((4, 2)))


def test_both_names_of_the_groups_together_are_an_error():
    module = OURS(axis_name="d", axis_groups=((0,),), axis_index_groups=((0,),))
    x = normal((1, 4, 2))
    variables = start(OURS(), x[0])
    with pytest.raises(ValueError, match="`axis_index_groups` must be None"):
        jax.vmap(lambda x: train(module, variables, x)[0], axis_name="d")(x)


def test_axis_index_groups_without_an_axis_name_are_ignored_as_in_flax():
    x = normal((4, 2))
    got = trained(OURS(axis_index_groups=((0, 1),)), x)
    chex.assert_trees_all_equal(got, trained(OURS(), x))


def test_axis_groups_without_an_axis_name_are_an_error():
    x = normal((4, 2))
    with pytest.raises(ValueError, match="`axis_groups` must come with `axis_name`"):
        trained(OURS(axis_groups=((0, 1),)), x)


# --- where flax is wrong -------------------------------------------------------------


def test_a_mean_much_larger_than_the_deviation_does_not_cancel():
    x = normal((256, 3)) + 1e4
    y, _ = train(OURS(), start(OURS(), x), x)
    exact = np.asarray(x, np.float64)
    want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert np.abs(y - want).max() < 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_flax_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean(dtype):
    x = (normal((512, 3)) + 100).astype(dtype)
    module = OURS(momentum=0.0, dtype=jnp.bfloat16)
    y, variables = train(module, start(module, x), x)
    assert_close(evaluate(module, variables, x), y, 2**-8)


def test_no_gradient_flows_into_running_statistics():
    x = normal((8, 3))
    variables = trained(OURS(), x)

    def total(x):
        return sum(map(jnp.sum, stats(train(OURS(), variables, x)[1]).values()))

    assert not jax.grad(total)(x).any()


def test_a_batch_without_valid_values_leaves_the_statistics_alone():
    x = normal((8, 3))
    before = trained(OURS(), x)
    y, after = train(OURS(), before, x, mask=jnp.zeros((8, 1)))
    assert jnp.isfinite(y).all()
    chex.assert_trees_all_equal(stats(after), stats(before))


# --- source --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_adapters_contain_no_mathematics(name):
    """No reduction, no jax.lax, no arithmetic but `%` on axes, public names only."""
    path = pathlib.Path(jaxbn.__file__).parent / f"{name}.py"
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {
        a.name for node in nodes if isinstance(node, ast.Import) for a in node.names
    }
    imported |= {
        f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    ours = {m for m in imported if m.split(".")[0] in ("jax", "jaxbn")}
    ours = {m for m in ours if not m.startswith(f"jaxbn.{name}_")}
    assert ours == {"jax.numpy", "jax.Array", "jaxbn"}
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "jnp"
    }
    types = {"promote_types", "issubdtype", "complexfloating", "float32", "finfo"}
    assert used <= types | {"asarray", "iscomplexobj"}
    operators = {type(node.op) for node in nodes if isinstance(node, ast.BinOp)}
    assert operators <= {ast.BitOr, ast.Mod}
