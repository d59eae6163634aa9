"""How rows are cut into blocks: whose they are, and how many."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxbn
from jaxbn.backends import blocks, xla

# Shape, type, devices; the rows of a block and the blocks, as measured on an H200.
ON_GPU = [
    ((128, 112, 112, 64), "bfloat16", 1, 28 * 112, 512),
    ((128, 56, 56, 64), "bfloat16", 1, 28 * 56, 256),
    ((128, 56, 56, 256), "bfloat16", 1, 56 * 56, 128),
    ((128, 28, 28, 512), "bfloat16", 1, 2 * 28 * 28, 64),
    ((128, 14, 14, 1024), "bfloat16", 1, 4 * 14 * 14, 32),
    ((128, 7, 7, 2048), "float32", 1, 16 * 7 * 7, 8),
    ((65536, 1024), "bfloat16", 1, 2048, 32),
    ((32, 56, 56, 64), "float32", 1, 7 * 56, 256),
    ((32, 14, 14, 256), "bfloat16", 1, 7 * 14, 64),
    # Each device has as many blocks, and none of another one's rows.
    ((8 * 128, 14, 14, 1024), "bfloat16", 8, 4 * 14 * 14, 8 * 32),
    ((8 * 128, 56, 56, 64), "bfloat16", 8, 7 * 56, 8 * 128 * 8),
    ((6, 14, 14, 4096), "float32", 4, 14 * 14, 6),  # nothing fits
    ((1009, 64), "float32", 1, 1009, 1),  # a prime
    ((64, 4096, 8), "float32", 1, 1024, 64 * 4),
    ((0, 7, 7, 8), "float32", 1, 49, 0),
]


@pytest.mark.parametrize(("shape", "dtype", "devices", "of_block", "number"), ON_GPU)
def test_a_gpu_has_blocks_for_all_its_processors(
    shape, dtype, devices, of_block, number
):
    x, axes = jax.ShapeDtypeStruct(shape, dtype), (len(shape) - 1,)
    found = {}

    def cut(x, where):
        wanted = blocks.rows_on_gpu(x, axes, devices)
        arrays, outer, inner = blocks.cut([x, where], axes, devices, wanted)
        assert arrays[0].ndim == arrays[1].ndim == len(outer) + len(inner) + 1
        found["rows"] = math.prod(arrays[0].shape[i] for i in inner)
        found["blocks"] = math.prod(arrays[0].shape[i] for i in outer)
        # The axes of the blocks are before those within: no row changes its place.
        assert [*outer, *inner] == list(range(len(outer) + len(inner)))
        return arrays

    where = jax.ShapeDtypeStruct((shape[0], *[1] * (len(shape) - 1)), bool)
    jax.eval_shape(cut, x, where)
    assert (found["rows"], found["blocks"]) == (of_block, number)


# Shape, axes; the blocks of the backward sums, or None if they are cut as above.
JOINED = [
    ((128, 112, 112, 64), (3,), (1024, 1568, 64)),
    ((128, 56, 56, 64), (3,), (896, 448, 64)),
    ((128, 14, 14, 1024), (3,), (112, 224, 1024)),
    ((65536, 1024), (1,), (128, 512, 1024)),
    ((3, 128, 14, 14, 1024), (0, 4), (3, 49, 512, 1024)),
    ((128, 3, 14, 14, 1024), (1, 4), None),  # rows that are not neighbours
    ((128, 7, 7, 2048), (3,), None),  # of 448 rows: too few
    ((32, 7, 7, 512), (3,), None),  # 49 times 32 rows: none of about 128
    ((1009, 64), (1,), None),
    ((128, 64, 56, 56), (1,), None),  # features are not last
    ((0, 7, 7, 8), (3,), None),
    ((64,), (0,), None),
]


@pytest.mark.parametrize(("shape", "axes", "want"), JOINED)
def test_the_rows_of_one_gpu_are_joined_if_their_number_allows(shape, axes, want):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    found = []

    def joined(x):
        most, wanted = (blocks.rows_on_gpu(x, axes, 1, more) for more in (1, 4))
        found.append(blocks.joined([x], axes, wanted, most))

    jax.eval_shape(joined, x)
    (cut,) = found
    assert (cut and cut.arrays[0].shape) == want
    assert cut is None or len(cut.outer) == len(cut.inner) == 1


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((4, 8, 16, 3), (3,)), ((2, 4, 8, 16, 3), (0, 4)), ((512, 3), (1,))],
)
def test_joined_rows_have_the_sums_of_all_rows(shape, axes):
    with jax.enable_x64(True):
        key = jax.random.key(0)
        a, x = jax.random.normal(key, (2, *shape))
        center = x.mean([i for i in range(len(shape)) if i not in axes]) + 1
        where = jax.random.bernoulli(key, 0.7, (*shape[:-1], 1))
        wanted = blocks.rows_on_gpu(x, axes, 1)
        assert blocks.joined([x], axes, wanted, wanted) is not None
        found, want = (
            xla.kernels(platform=platform).sums(a, x, center, None, where, axes=axes)
            for platform in ("gpu", None)
        )
        chex.assert_trees_all_close(found, want, rtol=1e-12)


def test_features_that_are_not_last_are_cut_as_elsewhere():
    x = jax.ShapeDtypeStruct((128, 64, 56, 56), jnp.float32)
    assert blocks.rows_on_gpu(x, (1,), 1) is None
    assert blocks.rows_on_gpu(x, (0, 3), 1) == 1568


@pytest.mark.parametrize(
    ("shape", "devices", "times"),
    [
        ((128, 7, 7, 2048), 1, 1),
        ((128, 14, 14, 1024), 1, 4),
        ((128, 14, 14, 1024), 2, 1),  # each device has half of it
    ],
)
def test_what_no_cache_holds_is_summed_by_more_thread_blocks(shape, devices, times):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    few, many = (blocks.rows_on_gpu(x, (3,), devices, more) for more in (1, 4))
    assert few == times * many


@functools.cache
def text(platform, shape=(64, 14, 14, 8)):
    """A training layer with ReLU and a shortcut, lowered for a platform."""

    def loss(scale, bias, x, residual):
        layer = functools.partial(
            jaxbn.batch_norm, activation="relu", residual=residual, implementation="xla"
        )
        return layer(x, jaxbn.init_state(shape[-1]), scale, bias)[0].sum()

    x, vector = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, shape[-1:]))
    traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(vector, vector, x, x)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_each_platform_has_the_barriers_that_help_there():
    """What y tells of ReLU; on a GPU y; elsewhere x, in both backward passes."""
    names = "tpu", "cuda", "rocm", "cpu"
    numbers = [text(p).count("optimization_barrier") for p in names]
    assert numbers == [3, 2, 2, 3]


def test_both_sums_of_a_backward_pass_are_added_in_one_reduction_on_a_gpu():
    # Of 98 blocks of 128 pixels.
    assert "tensor<2x98x1x8xf32>" in text("cuda")
    assert "tensor<2x98x" not in text("cpu")
    # More than a cache holds: 224 pixels are a block, not four times as many.
    assert "tensor<2x56x1x1024xf32>" in text("cuda", (64, 14, 14, 1024))
