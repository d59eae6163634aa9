"""jaxbn.nnx.BatchNorm is flax.nnx.BatchNorm, where flax is right."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in import CASES, Case, assert_close, normal
from flax import nnx
from jax.sharding import PartitionSpec as P

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


@nnx.jit
def train(module, x, **call):
    return module(x, use_running_average=False, **call)


@nnx.jit
def evaluate(module, x):
    return module(x, use_running_average=True)


@nnx.jit
def differentiate(module, x, **call):
    """A step in training with the gradients of a loss in parameters and input."""

    def loss(module, x):
        y = module(x, use_running_average=False, **call)
        wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return jnp.sum(jnp.sin(wide.real + wide.imag)), y

    inputs = (0, 1) if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    return nnx.grad(loss, argnums=inputs, has_aux=True)(module, x)


@functools.cache
def results(kind, name):
    """Everything that training a layer for three steps gives."""
    case = NNX_CASES[name]
    module, x = make(kind, **case.options), case.x
    before = variables(module)
    for i in range(3):
        gradients, y = differentiate(module, x + i, **case.call)
    return {
        "start": before,
        "values": y,
        "statistics": stats(module),
        "evaluation": evaluate(module, x),
        "gradients": jax.tree.map(jnp.asarray, nnx.to_pure_dict(nnx.state(gradients))),
    }


@pytest.mark.parametrize("name", NNX_CASES)
def test_variables_at_the_start_equal_those_of_flax(name):
    case = NNX_CASES[name]
    ours, want = (make(kind, **case.options) for kind in (OURS, FLAX))
    assert_close(variables(ours), variables(want), 0)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("what", ["values", "statistics", "evaluation", "gradients"])
@pytest.mark.parametrize("name", NNX_CASES)
def test_results_equal_those_of_flax(name, what):
    got, want = results(OURS, name)[what], results(FLAX, name)[what]
    assert_close(got, want, NNX_CASES[name].tolerance)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
def test_float64_results_equal_those_of_flax():
    with jax.enable_x64(True):
        x = normal((16, 4)).astype(jnp.float64)
        ours, want = make(OURS), make(FLAX)
        assert_close(train(ours, x), train(want, x))
        assert_close(stats(ours), stats(want))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_types_of_variables_do_not_change_in_training(dtype):
    module = make(OURS, debias=True, dtype=dtype)
    before = variables(module)
    train(module, normal((8, 4), dtype))
    assert_close(variables(module), before, np.inf)


def test_linen_nnx_and_the_function_are_equal_bit_for_bit():
    x, mask, residual = (
        normal((16, 4)),
        jnp.arange(16)[:, None] % 3 > 0,
        normal((16, 4)),
    )
    options = {"activation": "silu", "unbiased": True, "momentum": 0.9}
    module = make(OURS, debias=True, **options)
    linen = jaxbn.linen.BatchNorm(False, debias=True, **options)
    linen_variables = linen.init(jax.random.key(0), x)
    state, one, zero = jaxbn.init_state(4), jnp.ones(4), jnp.zeros(4)
    for _ in range(2):
        y, state = jaxbn.batch_norm(
            x, state, one, zero, where=mask, residual=residual, **options
        )
        by_nnx = module(x, mask=mask, residual=residual)
        by_linen, changed = linen.apply(
            linen_variables, x, mask=mask, residual=residual, mutable="batch_stats"
        )
        linen_variables = {**linen_variables, **changed}
    assert_close((by_nnx, stats(module)), (y, state._asdict()), 0)
    assert_close((by_linen, changed["batch_stats"]), (y, state._asdict()), 0)


@pytest.mark.parametrize("writer, reader", [(OURS, FLAX), (FLAX, OURS)])
def test_the_state_of_one_updates_the_other(writer, reader):
    x = normal((16, 4))
    source, target = make(writer), make(reader)
    train(source, x)
    nnx.update(target, nnx.state(source))
    assert_close(evaluate(target, x), evaluate(source, x))


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
    module, x = make(OURS), normal((16, 4)) + 3
    first = module(x)
    module.eval()
    assert_close(module(x), evaluate(module, x))
    module.train()
    assert_close(module(x), first)


def test_a_view_has_its_own_mode_and_the_same_variables():
    module, x = make(OURS), normal((16, 4)) + 3
    view = nnx.view(module, use_running_average=True)
    module(x)
    assert_close(view(x), evaluate(module, x))
    assert module.use_running_average is False


def test_view_info_describes_the_mode():
    assert "use_running_average" in nnx.view_info(make(OURS))


def test_the_mode_of_the_call_comes_before_that_of_the_constructor():
    module, x = make(OURS, use_running_average=True), normal((16, 4))
    before = stats(module)
    module(x, True)
    assert_close(stats(module), before, 0)
    module(x, False)
    assert not np.array_equal(stats(module)["mean"], before["mean"])


def test_a_missing_mode_is_the_error_of_flax():
    x = normal((4, 4))
    with pytest.raises(ValueError) as want:
        make(FLAX, use_running_average=None)(x)
    first_line = str(want.value).splitlines()[0]
    with pytest.raises(ValueError, match=re.escape(first_line)):
        make(OURS, use_running_average=None)(x)


def test_an_unbound_axis_name_is_an_error():
    with pytest.raises(ValueError, match="`axis_name` must be bound here"):
        make(OURS, axis_name="d")(normal((4, 4)))


def test_a_wrong_number_of_features_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=re.escape("must have shape (3,)")):
        make(OURS)(normal((8, 3)))


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
    x = normal((64, 4)) + 10
    module = make(OURS, debias=True)
    y = train(module, x)
    assert_close(evaluate(module, x), y)


def test_debias_adds_a_count_as_a_batch_statistic():
    module = make(OURS, debias=True)
    train(module, normal((8, 4)))
    assert isinstance(module.count, nnx.BatchStat)
    assert_close(module.count[...], jnp.ones(4), 0)


def test_momentum_none_averages_all_batches_equally():
    module, batches = make(OURS, momentum=None), normal((5, 16, 4))
    for x in batches:
        train(module, x)
    assert_close(stats(module)["mean"], batches.mean((0, 1)))


def test_several_feature_axes_have_statistics_of_their_shape():
    x = normal((8, 4, 3))
    module = make(OURS, (4, 3), axis=[1, 2])
    flat = make(OURS, 12)
    assert_close(train(module, x), train(flat, x.reshape(8, 12)).reshape(8, 4, 3))


def test_flax_defect_d15_a_nonfinite_batch_is_kept_out_of_the_running_statistics():
    module, x = make(OURS, skip_nonfinite=True), normal((8, 4))
    train(module, x)
    before = stats(module)
    train(module, x.at[0, 0].set(jnp.nan))
    assert_close(stats(module), before, 0)


@pytest.mark.parametrize("inference", [True, False])
def test_activation_and_residual_are_applied_to_the_result(inference):
    x, residual = normal((8, 4)), normal((8, 4), seed=1)
    got = make(OURS, activation="relu")(x, inference, residual=residual)
    want = nnx.relu(make(OURS)(x, inference) + residual)
    assert_close(got, want)


@pytest.mark.parametrize("inference", [True, False])
def test_the_implementation_is_passed_on(inference):
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        make(OURS, implementation="abacus")(normal((4, 4)), inference)


def test_both_names_of_the_groups_together_are_an_error():
    with pytest.raises(ValueError, match="`axis_index_groups` must be None"):
        make(OURS, axis_name="d", axis_groups=[[0]], axis_index_groups=[[0]])


def test_axis_index_groups_without_an_axis_name_are_ignored_as_in_flax():
    x = normal((8, 4))
    assert_close(make(OURS, axis_index_groups=[[0, 1]])(x), make(FLAX)(x))


# --- where flax is wrong -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bfloat16])
def test_flax_defect_d6_a_mask_of_numbers_means_nonzero(dtype):
    x, mask = normal((8, 4)), jnp.arange(8)[:, None] % 3
    assert_close(
        train(make(OURS), x, mask=mask.astype(dtype)),
        train(make(OURS), x, mask=mask != 0),
        0,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_flax_defect_d7_evaluation_in_bfloat16_never_rounds_the_running_mean(dtype):
    x = (normal((512, 4)) + 100).astype(dtype)
    module = make(OURS, momentum=0.0, dtype=jnp.bfloat16)
    y = train(module, x)
    assert_close(evaluate(module, x), y, 2**-8)


def test_flax_defect_d7_statistics_do_not_come_from_rounded_input():
    x = normal((512, 4)) + 100
    module = make(OURS, momentum=0.0, dtype=jnp.bfloat16)
    train(module, x)
    assert_close(stats(module)["var"], jnp.var(x, 0), 1e-4)


def test_the_running_mean_of_complex_input_keeps_its_imaginary_part():
    x = normal((16, 4), jnp.complex64)
    module = make(OURS, momentum=0.0)
    y = train(module, x)
    assert_close(evaluate(module, x), y)


def test_a_mean_much_larger_than_the_deviation_does_not_cancel():
    x = normal((256, 4)) + 1e4
    exact = np.asarray(x, np.float64)
    want = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert np.abs(train(make(OURS), x) - want).max() < 1e-3


def test_no_gradient_flows_into_running_statistics():
    def total(module, x):
        module(x)
        return sum(map(jnp.sum, stats(module).values()))

    gradient = nnx.grad(total, argnums=1)(make(OURS), normal((8, 4)))
    assert not gradient.any()


def test_a_batch_without_valid_values_leaves_the_statistics_alone():
    module, x = make(OURS), normal((8, 4))
    train(module, x)
    before = stats(module)
    y = train(module, x, mask=jnp.zeros((8, 1)))
    assert jnp.isfinite(y).all()
    assert_close(stats(module), before, 0)
