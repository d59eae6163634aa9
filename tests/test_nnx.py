"""jaxbn.nnx.BatchNorm is flax.nnx.BatchNorm, where flax is right."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import CASES, SWEPT, Case, assert_close, normal, together
from flax import nnx
from jax.sharding import PartitionSpec as P
from sweeps import but_slow

import jaxbn
import jaxbn.linen
import jaxbn.nnx

OURS, FLAX = jaxbn.nnx.BatchNorm, nnx.BatchNorm
# Flax rounds `x` and the running statistics to a narrow `dtype` before it uses them.
NNX_CASES = {
    name: case._replace(rounded=case.options.get("dtype"))
    for name, case in CASES.items()
} | {
    "complex-d32": Case(dtype=jnp.complex64, options={"dtype": jnp.float32}),
    "keep-types": Case(
        dtype=jnp.bfloat16,
        options={"promote_dtype": lambda values, *, dtype: values},
    ),
}


def make(kind, features=4, **options):
    return kind(features, rngs=nnx.Rngs(0), **options)


def variables(module, *filters):
    return nnx.to_pure_dict(nnx.state(module, *filters))


def stats(module):
    return variables(module, nnx.BatchStat)


X = normal((16, 4))


@nnx.jit
def train(module, x, **call):
    return module(x, use_running_average=False, **call)


@nnx.jit
def evaluate(module, x):
    return module(x, use_running_average=True)


@nnx.jit
def apply(module, x):
    """A call in the mode of the module."""
    return module(x)


def differentiate(module, x, **call):
    """A step in training with the gradients of a loss in parameters and input."""

    def loss(module, x):
        y = module(x, use_running_average=False, **call)
        wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return jnp.sum(jnp.sin(wide.real + wide.imag)), y

    inputs = (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    gradients, y = nnx.grad(loss, argnums=inputs, has_aux=True)(module, x)
    return y, nnx.to_pure_dict(nnx.state(gradients))


def of_cases(function, graphs):
    """One program with a call of `function` for the module of every case.

    It gives the result and the variables after the call.
    """

    def one(graph, state, *rest):
        module = nnx.merge(graph, state)
        return function(module, *rest), nnx.state(module)

    @jax.jit
    def run(states, *trees):
        return {
            name: one(graph, states[name], *(tree[name] for tree in trees))
            for name, graph in graphs.items()
        }

    return run


CHANGING = ("complex-d32",)  # types of the statistics, in the first step


def results(kind, name):
    """Everything that training for three steps gives in one of the cases."""
    return results_of(kind, together(NNX_CASES, CHANGING, name))[name]


@functools.cache
def results_of(kind, names):
    """The results of these cases, whose layers are in the same two programs."""
    cases = {name: NNX_CASES[name] for name in names}
    parts = {
        name: nnx.split(make(kind, **case.options)) for name, case in cases.items()
    }
    graphs = {name: graph for name, (graph, _) in parts.items()}
    states = before = {name: state for name, (_, state) in parts.items()}
    step = of_cases(lambda m, x, call: differentiate(m, x, **call), graphs)
    evaluation = of_cases(lambda m, x: m(x, use_running_average=True), graphs)
    for i in range(3):
        # Added outside: XLA may keep a sum of 16 bits in 32 where it is used.
        inputs = {n: case.x + np.asarray(i, case.x.dtype) for n, case in cases.items()}
        after = step(states, inputs, {name: case.call for name, case in cases.items()})
        states = {name: state for name, (_, state) in after.items()}
    ends = evaluation(states, {name: case.x for name, case in cases.items()})

    def stats(state):
        return nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat))

    return {
        name: {
            "start": nnx.to_pure_dict(before[name]),
            "values": after[name][0][0],
            "statistics": stats(states[name]),
            "evaluation": ends[name][0],
            "statistics after evaluation": stats(ends[name][1]),
            "gradients": after[name][0][1],
        }
        for name in cases
    }


of_all_cases = pytest.mark.filterwarnings("ignore:Casting complex values to real")


@of_all_cases
@pytest.mark.parametrize("name", but_slow(NNX_CASES, SWEPT))
def test_variables_at_the_start_equal_those_of_flax(name):
    got, want = results(OURS, name)["start"], results(FLAX, name)["start"]
    assert_close(got, want, 0)


@of_all_cases
@pytest.mark.parametrize("what", ["values", "statistics", "evaluation", "gradients"])
@pytest.mark.parametrize("name", but_slow(NNX_CASES, SWEPT))
def test_results_equal_those_of_flax(name, what):
    got, want = results(OURS, name)[what], results(FLAX, name)[what]
    assert_close(got, want, NNX_CASES[name].tolerance)


@of_all_cases
@pytest.mark.parametrize("name", but_slow(NNX_CASES, SWEPT))
def test_evaluation_changes_no_statistics(name):
    one = results(OURS, name)
    assert_close(one["statistics after evaluation"], one["statistics"], 0)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
def test_float64_results_equal_those_of_flax():
    with jax.enable_x64(True):
        ours, want = make(OURS), make(FLAX)

        @nnx.jit
        def both(ours, want, x):
            return train(ours, x), train(want, x)

        got, wanted = both(ours, want, X.astype(np.float64))
        assert got.dtype == np.float64
        assert_close(got, wanted)
        assert_close(stats(ours), stats(want))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_types_of_variables_do_not_change_in_training(dtype):
    module = make(OURS, debias=True, dtype=dtype)
    graph, before = nnx.split(module)

    def run(state, x):
        copy = nnx.merge(graph, state)
        return copy(x, use_running_average=False), nnx.state(copy)

    y, after = jax.eval_shape(run, before, normal((8, 4), dtype))
    assert y.dtype == dtype
    chex.assert_trees_all_equal_shapes_and_dtypes(
        nnx.to_pure_dict(after), nnx.to_pure_dict(before)
    )


def test_linen_nnx_and_the_function_are_equal_bit_for_bit():
    mask, residual = np.arange(16)[:, None] % 3 > 0, normal((16, 4), seed=5)
    options = {"activation": "silu", "unbiased": True, "momentum": 0.9}
    module = make(OURS, debias=True, **options)
    linen = jaxbn.linen.BatchNorm(False, debias=True, **options)
    state, one, zero = jaxbn.init_state(4), np.ones(4, "f"), np.zeros(4, "f")
    variables = {
        "params": {"scale": one, "bias": zero},
        "batch_stats": state._asdict(),
    }

    @jax.jit
    def step(state, x, mask, residual, one, zero):
        more = {"where": mask, "residual": residual, **options}
        return jaxbn.batch_norm(x, state, one, zero, **more)

    @jax.jit
    def step_of_linen(variables, x, mask, residual):
        more = {"mask": mask, "residual": residual}
        y, new = linen.apply(variables, x, mutable="batch_stats", **more)
        return y, {**variables, **new}

    for _ in range(2):
        y, state = step(state, X, mask, residual, one, zero)
        by_nnx = train(module, X, mask=mask, residual=residual)
        by_linen, variables = step_of_linen(variables, X, mask, residual)
    assert_close((by_nnx, stats(module)), (y, state._asdict()), 0)
    assert_close((by_linen, variables["batch_stats"]), (y, state._asdict()), 0)


@pytest.mark.parametrize("writer, reader", [(OURS, FLAX), (FLAX, OURS)])
def test_the_state_of_one_updates_the_other(writer, reader):
    source, target = make(writer), make(reader)
    train(source, X)
    nnx.update(target, nnx.state(source))
    assert_close(evaluate(target, X), evaluate(source, X))


# --- signatures, modes, errors -------------------------------------------------------


@pytest.mark.parametrize("name", ["__init__", "__call__", "set_view"])
def test_the_arguments_of_flax_come_first_with_their_kinds(name):
    ours, want = (
        [(p.name, p.kind) for p in inspect.signature(method).parameters.values()]
        for method in (getattr(OURS, name), getattr(FLAX, name))
    )
    assert ours[: len(want)] == want


def test_the_defaults_of_the_constructor_are_those_of_flax():
    ours = inspect.signature(OURS).parameters
    for name, parameter in inspect.signature(FLAX).parameters.items():
        assert ours[name].default == parameter.default, name


def test_train_and_eval_switch_the_mode():
    module = make(OURS)
    first = apply(module, X)
    module.eval()
    assert_close(apply(module, X), evaluate(module, X))
    module.train()
    assert_close(apply(module, X), first)


def test_a_view_has_its_own_mode_and_the_same_variables():
    module = make(OURS)
    view = nnx.view(module, use_running_average=True)
    apply(module, X)
    assert_close(apply(view, X), evaluate(module, X))
    assert module.use_running_average is False


def test_view_info_describes_the_mode():
    assert "use_running_average" in nnx.view_info(make(OURS))


def test_the_mode_of_the_call_comes_before_that_of_the_constructor():
    module = make(OURS, use_running_average=True)
    before = stats(module)
    evaluate(module, X)
    assert_close(stats(module), before, 0)
    train(module, X)
    assert not np.array_equal(stats(module)["mean"], before["mean"])


def types_of(module, *args, **call):
    """What a call gives, or its error, without compiling a program for it."""
    graph, state = nnx.split(module)
    return jax.eval_shape(lambda: nnx.merge(graph, state)(*args, **call))


def test_a_missing_mode_is_the_error_of_flax():
    with pytest.raises(ValueError) as want:
        types_of(make(FLAX, use_running_average=None), X)
    first_line = str(want.value).splitlines()[0]
    with pytest.raises(ValueError, match=re.escape(first_line)):
        types_of(make(OURS, use_running_average=None), X)


def test_an_unbound_axis_name_is_an_error():
    with pytest.raises(ValueError, match="`axis_name` must be bound here"):
        types_of(make(OURS, axis_name="d"), X)


def test_a_wrong_number_of_features_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=re.escape("must have shape (3,)")):
        types_of(make(OURS), normal((8, 3)))


def test_metadata_of_the_parameters_is_kept():
    layer = make(OURS, scale_metadata={"note": "a"}, bias_metadata={"note": "b"})
    assert (layer.scale.note, layer.bias.note) == ("a", "b")


def test_sharding_metadata_gives_the_specification_of_flax():
    def specs(kind):
        metadata = {"sharding_names": ("c",), "eager_sharding": False}
        layer = make(kind, scale_metadata=metadata)
        return nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(layer)))

    assert specs(OURS) == specs(FLAX)
    assert specs(OURS)["scale"] == P("c")


# --- new arguments -------------------------------------------------------------------


def test_evaluation_after_one_debiased_step_equals_training():
    module = make(OURS, debias=True)
    y = train(module, X + 10)
    assert_close(evaluate(module, X + 10), y)


def load(module, state, how):
    """Puts the statistics of a state into a module, in one of the ways of nnx."""
    if how == "update":
        nnx.update(module, state)
    elif how == "pure dictionary":
        own = nnx.state(module)
        nnx.replace_by_pure_dict(own, nnx.to_pure_dict(state))
        nnx.update(module, own)
    else:
        module.mean[...], module.var[...] = state["mean"][...], state["var"][...]


@pytest.mark.parametrize("how", ["update", "pure dictionary", "values"])
@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}])
def test_averages_of_flax_without_their_count_are_not_thrown_away(options, how):
    flax = make(FLAX)
    train(flax, X + 3)
    old = nnx.state(flax)
    module = make(OURS, **options)
    load(module, old, how)
    message = "`count` must be .* got"
    with pytest.raises(ValueError, match=message):
        module(X, use_running_average=False)
    if how == "update":  # there also where values are not known
        with pytest.raises(ValueError, match=message):
            train(module, X)
    assert_close(evaluate(module, X), evaluate(flax, X))  # which needs none
    module.count = nnx.BatchStat(jnp.ones(4))
    module(X, use_running_average=False)
    assert np.abs(module.mean[...] - old["mean"][...]).max() < 3
    # With its own state, or a count in that of Flax, nothing is missing.
    old["count"] = nnx.BatchStat(jnp.full(4, 7.0))
    for state in (nnx.state(module), old):
        other = make(OURS, **options)
        nnx.update(other, state)
        train(other, X)
        assert_close(other.count[...], state["count"][...] + 1)


def test_debias_adds_a_count_as_a_batch_statistic():
    module = make(OURS, debias=True)
    train(module, X)
    assert isinstance(module.count, nnx.BatchStat)
    assert_close(module.count[...], np.ones(4, np.float32), 0)


def test_momentum_none_averages_all_batches_equally():
    module, batches = make(OURS, momentum=None), normal((5, 16, 4))
    for x in batches:
        train(module, x)
    assert_close(stats(module)["mean"], batches.mean((0, 1)))


def test_several_feature_axes_have_statistics_of_their_shape():
    x = normal((8, 4, 3))

    @jax.jit
    def run(x):
        flat = make(OURS, 12)
        got = make(OURS, (4, 3), axis=[1, 2])(x)
        return got, flat(x.reshape(8, 12)).reshape(8, 4, 3)

    assert_close(*run(x))


def test_flax_defect_d15_a_nonfinite_batch_is_kept_out_of_the_running_statistics():
    module, x = make(OURS, skip_nonfinite=True), X.copy()
    train(module, x)
    before = stats(module)
    x[0, 0] = np.nan
    train(module, x)
    assert_close(stats(module), before, 0)


def test_activation_and_residual_are_applied_to_the_result():
    @jax.jit
    def run(x, residual):
        """With and without them, in training and at evaluation."""
        return {
            inference: (
                make(OURS, activation="relu")(x, inference, residual=residual),
                make(OURS)(x, inference),
            )
            for inference in (True, False)
        }

    residual = normal((16, 4), seed=5)
    for inference, (got, plain) in run(X, residual).items():
        want = np.maximum(plain + residual, 0)
        assert_close({inference: got}, {inference: want})


@pytest.mark.parametrize("inference", [True, False])
def test_the_implementation_is_passed_on(inference):
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        types_of(make(OURS, implementation="abacus"), X, inference)


def test_both_names_of_the_groups_together_are_an_error():
    with pytest.raises(ValueError, match="`axis_index_groups` must be None"):
        make(OURS, axis_name="d", axis_groups=[[0]], axis_index_groups=[[0]])


def test_axis_index_groups_without_an_axis_name_are_ignored_as_in_flax():
    got, want = make(OURS, axis_index_groups=[[0, 1]]), make(FLAX)
    assert_close(train(got, X), train(want, X))


# --- where flax is wrong -------------------------------------------------------------


def test_flax_defect_d6_a_mask_of_numbers_is_refused_and_not_a_weight():
    for dtype in ("float32", "int32", "bfloat16"):
        with pytest.raises(TypeError, match=rf"`mask` must be boolean, got {dtype}"):
            make(OURS)(X, mask=np.ones((16, 1)).astype(dtype))


def test_flax_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean():
    """And the statistics do not come from rounded input."""

    @jax.jit
    def run(x):
        module = make(OURS, momentum=0.0, dtype=jnp.bfloat16)
        y = module(x)
        return module(x, use_running_average=True), y, module.var[...]

    for dtype in (jnp.float32, jnp.bfloat16):
        x = (normal((512, 4)) + 100).astype(dtype)
        got, want, var = run(x)
        assert_close({str(dtype): got}, {str(dtype): want}, 2**-8)
        if dtype == jnp.float32:
            assert_close(var, np.var(x, 0), 1e-4)


def test_the_running_mean_of_complex_input_keeps_its_imaginary_part():
    @jax.jit
    def run(x):
        module = make(OURS, momentum=0.0)
        y = module(x)
        return module(x, use_running_average=True), y

    assert_close(*run(normal((16, 4), jnp.complex64)))


def test_a_mean_much_larger_than_the_deviation_does_not_cancel():
    x = normal((256, 4)) + np.float32(1e4)
    exact = np.asarray(x, np.float64)
    want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert np.abs(train(make(OURS), x) - want).max() < 1e-3


def test_no_gradient_flows_into_running_statistics():
    @jax.jit
    @jax.grad
    def gradient(x):
        module = make(OURS)
        module(x)
        return sum(map(jnp.sum, stats(module).values()))

    assert not np.any(gradient(X))


def test_a_batch_without_valid_values_leaves_the_statistics_alone():
    module = make(OURS)
    train(module, X)
    before = stats(module)
    y = train(module, X, mask=np.zeros((16, 1), bool))
    assert np.isfinite(y).all()
    assert_close(stats(module), before, 0)


def test_sizes_and_axes_may_be_lists_or_of_numpy():
    def graphdef(num_features, axis):
        def layer():
            return OURS(num_features, axis=axis, rngs=nnx.Rngs(0))

        return nnx.graphdef(nnx.eval_shape(layer))

    given = [
        ((2, 4), (-2, -1)),
        ([2, 4], [-2, -1]),
        (np.array([2, 4]), np.array([-2, -1])),
    ]
    first, *others = (graphdef(*case) for case in given)
    assert all(hash(other) == hash(first) and other == first for other in others)
    assert graphdef(np.int64(4), np.int32(-1)) == graphdef(4, -1)
