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
from drop_in import (
    CASES,
    DEVICES,
    KEY,
    SWEPT,
    Case,
    assert_close,
    normal,
    together,
)
from flax import linen as nn
from flax import serialization
from jax.sharding import PartitionSpec as P
from sweeps import but_slow

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


X = normal((16, 4))


def fresh(*, count=False):
    """The variables of a layer of four features before the first step."""
    stats = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    return {
        "params": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
        "batch_stats": stats | ({"count": np.zeros(4, np.float32)} if count else {}),
    }


def later():
    """Variables with statistics that no batch here has."""
    stats = {"mean": normal(4, seed=2), "var": np.square(normal(4, seed=3)) + 0.5}
    return fresh() | {"batch_stats": stats}


def cast(variables, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), variables)


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


def types_of(function, *args, **options):
    """What a call gives, or its error, without compiling a program for it."""
    return jax.eval_shape(lambda: function(*args, **options))


def stats(variables):
    return variables["batch_stats"]


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


CHANGING = ("complex", "narrow-state")  # types of the statistics, in the first step


def results(kind, name):
    """Everything that training for three steps gives in one of the cases."""
    return results_of(kind, together(LINEN_CASES, CHANGING, name))[name]


@functools.cache
def results_of(kind, names):
    """The results of these cases, whose layers are in the same three programs."""
    cases = {name: LINEN_CASES[name] for name in names}
    modules = {name: kind(**case.options) for name, case in cases.items()}
    inputs = {name: case.x for name, case in cases.items()}
    calls = {name: case.call for name, case in cases.items()}

    def in_every_case(function):
        def run(*trees):
            return {
                name: function(module, *(tree[name] for tree in trees))
                for name, module in modules.items()
            }

        return jax.jit(run)

    begin = in_every_case(lambda module, x: module.init(KEY, x, False))
    step = in_every_case(
        lambda module, variables, x, call: differentiate(module, variables, x, **call)
    )
    evaluation = in_every_case(
        lambda module, variables, x: module.apply(
            variables, x, True, mutable="batch_stats"
        )
    )
    before = variables = begin(inputs)
    for i in range(3):
        # Added outside: XLA may keep a sum of 16 bits in 32 where it is used.
        batches = {name: x + np.asarray(i, x.dtype) for name, x in inputs.items()}
        after = step(variables, batches, calls)
        variables = {name: one[1] for name, one in after.items()}
    ends = evaluation(variables, inputs)
    return {
        name: {
            "start": before[name],
            "values": after[name][0],
            "statistics": stats(variables[name]),
            "evaluation": ends[name][0],
            "statistics after evaluation": stats(ends[name][1]),
            "gradients": after[name][2],
            "variables": variables[name],
        }
        for name in modules
    }


of_all_cases = pytest.mark.filterwarnings("ignore:Casting complex values to real")


@of_all_cases
@pytest.mark.parametrize(
    "name", but_slow([n for n in LINEN_CASES if n != "complex"], SWEPT)
)
def test_variables_at_the_start_equal_those_of_flax(name):
    got, want = results(OURS, name)["start"], results(FLAX, name)["start"]
    assert_close(got, want, 0)


@of_all_cases
@pytest.mark.parametrize("what", ["values", "statistics", "evaluation", "gradients"])
@pytest.mark.parametrize("name", but_slow(LINEN_CASES, SWEPT))
def test_results_equal_those_of_flax(name, what):
    got, want = results(OURS, name)[what], results(FLAX, name)[what]
    assert_close(got, want, LINEN_CASES[name].tolerance)


@of_all_cases
def test_the_mean_of_complex_input_is_complex_from_the_start():
    start_of_it = results(OURS, "complex")["start"]["batch_stats"]
    assert [v.dtype for v in start_of_it.values()] == [jnp.complex64, jnp.float32]


def test_float64_results_equal_those_of_flax():
    def run(x):
        variables = FLAX().init(KEY, x, False)
        steps = (train(module, variables, x) for module in (OURS(), FLAX()))
        return OURS().init(KEY, x, False), variables, *steps

    with jax.enable_x64(True):
        ours, variables, got, want = jax.jit(run)(X.astype(np.float64))
    assert got[0].dtype == np.float64
    assert_close(ours, variables, 0)
    assert_close(got, want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("debias", [True, False])
def test_types_of_variables_do_not_change_in_training(dtype, debias):
    module, x = OURS(debias=debias), normal((8, 3), dtype)
    before = types_of(module.init, KEY, x, False)
    _, after = jax.eval_shape(lambda v: train(module, v, x), before)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": jnp.bfloat16}, {"force_float32_reductions": False}],
)
def test_statistics_that_were_cast_are_stored_in_the_types_of_flax(options):
    for stored in (jnp.bfloat16, jnp.float16):
        for dtype in (stored, jnp.float32, jnp.int32):
            case = cast(fresh(), stored), X.astype(dtype)
            got, want = (types_of(train, m(**options), *case) for m in (OURS, FLAX))
            chex.assert_trees_all_equal_shapes_and_dtypes(got, want)


def test_statistics_that_were_cast_are_not_rounded_again():
    narrow = cast(later(), jnp.bfloat16)
    same = cast(narrow, np.float32)
    got, want = (train(OURS(), variables, X)[1] for variables in (narrow, same))
    assert_close(stats(got), stats(want), 0)


@of_all_cases
@pytest.mark.parametrize("writer, reader", [(OURS, FLAX), (FLAX, OURS)])
def test_a_checkpoint_of_one_loads_in_the_other(writer, reader):
    saved, target = results(writer, "defaults"), results(reader, "defaults")["start"]
    content = serialization.to_bytes(saved["variables"])
    loaded = serialization.from_bytes(target, content)
    got = evaluate(reader(), loaded, LINEN_CASES["defaults"].x)
    assert_close(got, saved["evaluation"])


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
    with pytest.raises(ValueError) as want:
        types_of(FLAX(both).init, KEY, X, both)
    with pytest.raises(ValueError, match=re.escape(str(want.value))):
        types_of(OURS(both).init, KEY, X, both)


def test_training_with_immutable_statistics_is_the_error_of_flax():
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        types_of(OURS().apply, fresh(), X, use_running_average=False)


@of_all_cases
@pytest.mark.parametrize("name", but_slow(LINEN_CASES, SWEPT))
def test_evaluation_changes_no_statistics(name):
    one = results(OURS, name)
    chex.assert_trees_all_equal(one["statistics after evaluation"], one["statistics"])


@of_all_cases
def test_init_does_not_update_the_running_statistics():
    assert np.abs(LINEN_CASES["defaults"].x.mean(0)).min() > 1e-3
    got = stats(results(OURS, "defaults")["start"])
    chex.assert_trees_all_equal(got, stats(fresh()))


def test_init_outside_a_mesh_needs_no_bound_axis():
    module = OURS(axis_name="d", axis_groups=((0, 1), (2, 3)))
    chex.assert_trees_all_equal(start(module, X), fresh())


def test_init_inside_a_mesh_equals_init_outside():
    module = OURS(axis_name="d")

    def inside(check_vma):
        return jax.shard_map(
            lambda x: module.init(KEY, x, False),
            mesh=jax.make_mesh((DEVICES,), ("d",)),
            in_specs=P("d"),
            out_specs=P(),
            check_vma=check_vma,
        )

    x = jax.device_put(X, jax.NamedSharding(jax.make_mesh((DEVICES,), ("d",)), P("d")))
    got = jax.jit(lambda x: {check: inside(check)(x) for check in (True, False)})(x)
    for check_vma, variables in jax.device_get(got).items():
        chex.assert_trees_all_equal(
            variables, fresh(), custom_message=f"{check_vma = }"
        )


def test_an_unbound_axis_name_is_an_error_outside_init():
    with pytest.raises(ValueError, match="`axis_name` must be bound here"):
        types_of(train, OURS(axis_name="d"), fresh(), X)


def test_partitioned_initializers_keep_their_metadata():
    module = OURS(False, scale_init=nn.with_partitioning(nn.initializers.ones, ("c",)))
    variables = types_of(module.init, KEY, X)
    assert nn.get_partition_spec(variables)["params"]["scale"] == P("c")


# --- new arguments -------------------------------------------------------------------


def test_evaluation_after_one_debiased_step_equals_training():
    module = OURS(debias=True)
    y, variables = train(module, fresh(count=True), X + 10)
    assert_close(evaluate(module, variables, X + 10), y)


def test_debias_adds_a_count_in_float32_with_the_shape_of_the_features():
    module, variables = OURS(debias=True), fresh(count=True)
    low = X.astype(jnp.bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        types_of(module.init, KEY, low, False), variables
    )
    for _ in range(2):
        chex.assert_trees_all_equal_shapes_and_dtypes(
            types_of(train, module, variables, low)[1], variables
        )
        _, variables = train(module, variables, X)
    assert_close(stats(variables)["count"], np.full(4, 2, np.float32), 0)


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}])
def test_a_checkpoint_without_count_is_evaluated_but_not_restarted(options):
    saved = later()
    want = evaluate(FLAX(), saved, X)
    assert_close(evaluate(OURS(**options), saved, X), want)
    with pytest.raises(ValueError, match="`variables` must have a 'count' beside"):
        types_of(train, OURS(**options), saved, X)
    count = np.full(4, 1000, np.float32)
    stats = {**saved["batch_stats"], "count": count}
    _, after = train(OURS(**options), {**saved, "batch_stats": stats}, X)
    np.testing.assert_array_equal(after["batch_stats"]["count"], count + 1)


def test_momentum_none_averages_all_batches_equally():
    module, batches, variables = OURS(momentum=None), normal((5, 16, 4)), fresh(count=1)
    for x in batches:
        _, variables = train(module, variables, x)
    assert_close(stats(variables)["mean"], batches.mean((0, 1)))


def test_unbiased_stores_the_variance_over_n_minus_one():
    _, variables = train(OURS(momentum=0.0, unbiased=True), fresh(), X)
    assert_close(stats(variables)["var"], np.var(X, 0, ddof=1))


def test_unbiased_can_be_initialized_with_one_value_per_channel():
    chex.assert_trees_all_equal(start(OURS(unbiased=True), X[:1]), fresh())


def test_flax_defect_d15_a_nonfinite_batch_is_kept_out_of_the_running_statistics():
    x = X.copy()
    x[0, 0] = np.inf
    _, after = train(OURS(skip_nonfinite=True), later(), x)
    chex.assert_trees_all_equal(stats(after), stats(later()))


def test_activation_and_residual_are_applied_to_the_result():
    @jax.jit
    def run(x, residual):
        """Without and with them, in training and at evaluation."""

        def apply(inference, activation, **call):
            module = OURS(inference, activation=activation)
            return module.apply(later(), x, mutable="batch_stats", **call)[0]

        return {
            inference: (
                apply(inference, None),
                apply(inference, "relu", residual=residual),
            )
            for inference in (True, False)
        }

    residual = normal((16, 4), seed=5)
    for inference, (plain, got) in run(X, residual).items():
        want = np.maximum(plain + residual, 0)
        assert_close({inference: got}, {inference: want})


@pytest.mark.parametrize("inference", [True, False])
def test_the_implementation_is_passed_on(inference):
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        types_of(OURS(inference, implementation="abacus").init, KEY, X)


def test_both_names_of_the_groups_together_are_an_error():
    module = OURS(axis_name="d", axis_groups=((0,),), axis_index_groups=((0,),))
    lane = jax.vmap(lambda x: train(module, fresh(), x)[0], axis_name="d")
    with pytest.raises(ValueError, match="`axis_index_groups` must be None"):
        types_of(lane, X[None])


def test_axis_index_groups_without_an_axis_name_are_ignored_as_in_flax():
    got = train(OURS(axis_index_groups=((0, 1),)), fresh(), X)
    chex.assert_trees_all_equal(got, train(OURS(), fresh(), X))


def test_axis_groups_without_an_axis_name_are_an_error():
    with pytest.raises(ValueError, match="`axis_groups` must come with `axis_name`"):
        types_of(train, OURS(axis_groups=((0, 1),)), fresh(), X)


# --- where flax is wrong -------------------------------------------------------------


def test_a_mean_much_larger_than_the_deviation_does_not_cancel():
    x = normal((256, 4)) + np.float32(1e4)
    y, _ = train(OURS(), fresh(), x)
    exact = np.asarray(x, np.float64)
    want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert np.abs(y - want).max() < 1e-3


def test_flax_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean():
    module = OURS(momentum=0.0, dtype=jnp.bfloat16)

    @jax.jit
    def run(x):
        y, variables = train(module, fresh(), x)
        return evaluate(module, variables, x), y

    for dtype in (jnp.float32, jnp.bfloat16):
        got, want = run((normal((512, 4)) + 100).astype(dtype))
        assert_close({str(dtype): got}, {str(dtype): want}, 2**-8)


def test_no_gradient_flows_into_running_statistics():
    def total(x):
        return sum(map(jnp.sum, stats(train(OURS(), later(), x)[1]).values()))

    assert not np.any(jax.jit(jax.grad(total))(X))


def test_a_batch_without_valid_values_leaves_the_statistics_alone():
    y, after = train(OURS(), later(), X, mask=np.zeros((16, 1), bool))
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(stats(after), stats(later()))


# --- source --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_adapters_contain_no_mathematics(name):
    """No reduction, no jax.lax, no arithmetic, public names only."""
    path = pathlib.Path(jaxbn.__file__).parent / f"{name}_base.py"
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
    assert ours - {"jaxbn.nnx_modes"} == {
        "jax.numpy",
        "jax.Array",
        "jaxbn.variants.hooks",
    }
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "jnp"
    }
    types = {"promote_types", "issubdtype", "complexfloating", "float32", "finfo"}
    assert used <= types | {"asarray", "iscomplexobj", "inexact"}
    operators = {type(node.op) for node in nodes if isinstance(node, ast.BinOp)}
    assert operators <= {ast.BitOr}


@pytest.mark.parametrize("axis", [np.int64(-1), [-1], np.array([1])])
def test_axes_may_be_integers_of_numpy(axis):
    def shapes(axis):
        module = jaxbn.linen.BatchNorm(use_running_average=False, axis=axis)
        return jax.eval_shape(module.init, jax.random.key(0), np.ones((4, 6), "f"))

    chex.assert_trees_all_equal_shapes(shapes(axis), shapes(-1))
