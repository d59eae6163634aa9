"""What is particular to `native`: when it is chosen, and that nothing else changes.

Its results are checked with those of the others in `test_contract.py`, its loops by
`tests/native/kernel_test.cc`.
"""

import functools
import hashlib
import os
import pickle
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbn
from jaxbn.backends import dispatch, native

built = pytest.mark.skipif(
    jaxbn.implementations()["native"] is not None, reason="the library is not built"
)
KERNELS = ("jaxbn_moments", "jaxbn_sums", "jaxbn_map")


def layer(x, scale, bias, implementation="native", **options):
    state = jaxbn.init_state(scale.shape[0])
    options = {"activation": "relu", "implementation": implementation} | options
    return jaxbn.batch_norm(x, state, scale, bias, **options)[0]


def loss(x, scale, bias, implementation="native", **options):
    y = layer(x, scale, bias, implementation, **options)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))


def inputs(shape=(16, 6), dtype=jnp.float32):
    generator = np.random.default_rng(0)
    draw = functools.partial(generator.normal, size=shape[-1])
    x = jnp.asarray(generator.normal(3, 2, shape), dtype)
    return x, jnp.asarray(draw(1), jnp.float32), jnp.asarray(draw(0), jnp.float32)


def gradient(implementation, **options):
    function = functools.partial(loss, implementation=implementation, **options)
    return jax.jit(jax.grad(function, argnums=(0, 1, 2)))


def calls(text):
    return [name for name in KERNELS if f"@{name}" in text]


def digest():
    """Of all bits of a gradient that several threads compute where there are some."""
    results = gradient("native")(*inputs((5000, 65)))
    return hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest()


@built
class TestChoice:
    def test_named_implementation_is_in_the_program(self):
        assert calls(gradient("native").lower(*inputs()).as_text()) == list(KERNELS)
        assert not calls(gradient("xla").lower(*inputs()).as_text())

    def test_automatic_choice_leaves_small_arrays_to_xla(self):
        large = inputs((4096, 64))
        assert calls(gradient(None).lower(*large).as_text()) == list(KERNELS)
        assert not calls(gradient(None).lower(*inputs()).as_text())

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    def test_partitioned_program_gathers_nothing(self, kind):
        mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
        x, scale, bias = inputs((64, 6))
        with jax.set_mesh(mesh):
            x = jax.device_put(x, NamedSharding(mesh, P("d")))
            lowered = gradient("native").lower(x, scale, bias)
        assert not calls(lowered.as_text())
        assert "all-gather" not in lowered.compile().as_text()

    @pytest.mark.parametrize("check", [True, False])
    def test_shard_map_runs_the_kernels_on_each_shard(self, check):
        mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
        x, scale, bias = inputs((64, 6))

        def local(x, scale, bias):
            return layer(x, scale, bias, axis_name="d")

        specs = {"in_specs": (P("d"), P(), P()), "out_specs": P("d")}
        mapped = jax.shard_map(local, mesh=mesh, check_vma=check, **specs)
        lowered = jax.jit(mapped).lower(x, scale, bias)
        assert calls(lowered.as_text()) == ["jaxbn_moments", "jaxbn_map"]
        want = layer(x, scale, bias, "xla")
        chex.assert_trees_all_close(jax.jit(mapped)(x, scale, bias), want, atol=1e-5)

    def test_global_and_mapped_calls_of_one_program_differ(self):
        mesh = jax.make_mesh((1, 8), ("r", "d"), axis_types=(AxisType.Auto,) * 2)
        x, scale, bias = inputs((64, 6))

        @jax.jit
        def both(x):
            mapped = jax.shard_map(
                lambda x: layer(x, scale, bias),
                mesh=mesh,
                in_specs=P(),
                out_specs=P(),
                check_vma=False,
            )
            return layer(x, scale, bias), mapped(x)

        x = jax.device_put(x, NamedSharding(mesh, P()))
        text = both.lower(x).as_text()
        assert text.count("@jaxbn_moments(") == 1
        chex.assert_trees_all_close(*both(x), atol=1e-5)

    def test_other_platforms_and_exported_programs_do_not_know_it(self):
        function = gradient("native")
        traced = function.trace(*inputs())
        assert not calls(traced.lower(lowering_platforms=("cuda",)).as_text())
        assert not calls(jax.export.export(function)(*inputs()).mlir_module())

    def test_a_thread_more_changes_no_bit(self):
        code = """
            import os, sys
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            sys.path[:0] = sys.argv[1:]
            import test_native
            print(test_native.digest())
        """
        places = [os.path.dirname(__file__), os.getcwd()]
        command = [sys.executable, "-c", textwrap.dedent(code), *places]
        alone = subprocess.run(command, capture_output=True, check=True, text=True)
        assert alone.stdout.strip() == digest()


@built
def test_a_saved_program_finds_its_kernels_in_another_process(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    call = functools.partial(jaxbn.moments, implementation="native")
    compiled = jax.jit(call).lower(x).compile()
    saved = tmp_path / "program"
    saved.write_bytes(pickle.dumps((x, serialize_executable.serialize(compiled))))
    code = """
        import pickle, sys
        import jax, jaxbn
        from jax.experimental import serialize_executable
        jax.config.update("jax_num_cpu_devices", 8)
        x, program = pickle.load(open(sys.argv[1], "rb"))
        one = {"execution_devices": jax.devices()[:1]}
        loaded = serialize_executable.deserialize_and_load(*program, **one)
        print(loaded(x).m2.tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(saved)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(compiled(x).m2.tolist())


def along_scan(f):
    return lambda x: jax.lax.scan(lambda sum_, row: (sum_ + f(row), 0), 0.0, x)[0]


TRANSFORMS = {
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,)),
    "reverse over reverse": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)),
    "vmap": lambda f: jax.vmap(jax.grad(f)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](x),
    "scan": lambda f: jax.grad(along_scan(f)),
}
QUICK = ("hessian", "reverse over reverse", "vmap", "checkpoint")


@built
class TestSameMathematics:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    @pytest.mark.parametrize("axis", [1, -1])
    def test_values_and_gradients(self, axis, dtype):
        x, scale, bias = inputs((6, 4, 5, 6), dtype)
        scale, bias = scale[: x.shape[axis]], bias[: x.shape[axis]]
        native_, plain = (
            gradient(name, axis=axis, residual=x)(x, scale, bias)
            for name in ("native", "xla")
        )
        atol = 2e-2 if dtype != "float32" else 2e-5
        chex.assert_trees_all_close(native_, plain, atol=atol, rtol=atol)

    @pytest.mark.parametrize(
        ("where", "transforms"),
        [
            ("rows", QUICK),
            pytest.param("rows", set(TRANSFORMS) - set(QUICK), marks=pytest.mark.slow),
            pytest.param(None, TRANSFORMS, marks=pytest.mark.slow),
        ],
        ids=["rows", "rows-rest", "None"],
    )
    def test_every_derivative(self, where, transforms):
        x, scale, bias = inputs((5, 4, 3))
        mask = None if where is None else np.arange(4)[:, None] != 1

        def function(implementation, x):
            mine = mask if x.ndim == 2 or mask is None else mask[None]
            return loss(x, scale, bias, implementation, where=mine)

        @jax.jit
        def all_of_them(x):
            found = {}
            for name in transforms:
                transform = TRANSFORMS[name]
                small = name in ("jacfwd", "jacrev", "hessian")
                found[name] = [
                    transform(functools.partial(function, implementation))(
                        x[0] if small else x
                    )
                    for implementation in ("native", "xla")
                ]
            return found

        for name, pair in all_of_them(x).items():
            by = {"atol": 1e-4, "rtol": 1e-4, "custom_message": name}
            chex.assert_trees_all_close(*pair, **by)

    @pytest.mark.slow
    def test_a_hundred_million_rows_lose_nothing(self):
        x = jnp.where(jnp.arange(10**8)[:, None] % 4 == 0, 4.0, 1.0)
        m = jax.jit(functools.partial(jaxbn.moments, implementation="native"))(x)
        np.testing.assert_allclose(m.mean, 1.75, rtol=1e-7)
        np.testing.assert_allclose(m.m2 / 10**8, 27 / 16, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axes", "where", "sizes"),
    [
        ((8, 3), (1,), None, [1, 8, 3, 1, 1, 8]),
        ((2, 3, 4, 5), (1,), None, [1, 2, 3, 20, 1, 2]),
        ((2, 3, 4, 5), (3,), (2, 1, 1, 1), [1, 24, 5, 1, 1, 12]),
        ((2, 3, 4, 5), (3,), (2, 3, 4, 1), [1, 24, 5, 1, 1, 1]),
        ((2, 3, 4, 5), (3,), (1, 3, 1, 1), None),
        ((2, 3, 4, 5), (1,), (2, 1, 4, 5), None),
        ((2, 3, 4, 5), (0, 3), (2, 3, 4, 1), [2, 12, 5, 1, 2, 1]),
        ((2, 3, 4, 5), (0, 2), None, [2, 3, 4, 5, 1, 3]),
        ((2, 3, 4, 5), (0, 1), None, [1, 1, 6, 20, 1, 1]),
        ((2, 3, 4, 5, 6), (0, 2, 4), None, None),
        ((1, 1), (1,), None, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_layouts_that_the_kernels_see(shape, axes, where, sizes):
    mask = None if where is None else np.ones(where, bool)
    assert native._sizes(shape, mask, axes) == sizes


@pytest.fixture
def fresh():
    """The library is looked for again, before the test and after it."""
    caches = (native.missing, dispatch.kernels)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_without_the_library_everything_runs_on_xla(fresh, monkeypatch):
    monkeypatch.setattr(native, "_LIBRARY", "absent.so")
    assert "was not built" in jaxbn.implementations()["native"]
    assert dispatch.choose(None) == "auto"
    assert dispatch.kernels("auto", "cpu") is dispatch.kernels()
    with pytest.raises(NotImplementedError, match=r"got 'native': .*Use 'xla'"):
        layer(*inputs())


def test_a_library_that_is_none_is_reported(fresh, monkeypatch, tmp_path):
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "_LIBRARY", str(tmp_path / "broken.so"))
    assert "cannot be loaded" in jaxbn.implementations()["native"]


@built
def test_the_variable_chooses(monkeypatch):
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", "native")
    assert calls(gradient(None).lower(*inputs()).as_text())
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", "xla")
    assert not calls(gradient(None).lower(*inputs((4096, 64))).as_text())
    monkeypatch.setenv("JAXBN_IMPLEMENTATION", "cuda")
    with pytest.raises(ValueError, match="JAXBN_IMPLEMENTATION must be one of"):
        layer(*inputs(), None)
