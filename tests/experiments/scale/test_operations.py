"""What is done with a trained run, on tiny networks with made-up weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from experiments.common.errors import UserError
from experiments.nets import resnet
from experiments.scale import arrays, config, evaluate, export, fold, recalibrate
from experiments.scale.network import make_network

EXAMPLES, SIZE = 22, 8


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """A third of the smallest network: the stem and a strided block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "blocks", lambda counts: [("stage2_block1", 1, 2)])
        yield


@functools.cache  # so that each network is compiled once
def made(api="linen", dtype="float32", norm="jaxbn"):
    """A network whose weights and statistics are all different from their defaults."""
    network = make_network(
        config.Model(depth=8, api=api, dtype=dtype, norm=norm),
        config.Data(image_size=SIZE, classes=4),
        batch_size=8,
        data_devices=1,
        axis_name=None,
    )
    # Compiled as a whole, which is quicker than operation by operation.
    network = network._replace(
        train=jax.jit(network.train), infer=jax.jit(network.infer)
    )
    generator = np.random.default_rng(0)

    def made_up(path, leaf):
        if leaf.ndim > 1:  # a kernel
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            value = scale * generator.standard_normal(leaf.shape)
        else:
            value = generator.uniform(0.05, 0.2, leaf.shape)
            if path[-1].key in ("scale", "var"):
                value += generator.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return network, jax.tree.map_with_path(made_up, shapes)


@functools.cache
def folded(api="linen", norm="jaxbn"):
    network, variables = made(api, norm=norm)
    return fold.folded(network, variables, jnp.asarray(images()))


def images(count=EXAMPLES, seed=1):
    generator = np.random.default_rng(seed)
    shape = (count, SIZE, SIZE, 3)
    return (generator.standard_normal(shape) + 0.5).astype(np.float32)


def batches(x, labels, size):
    """Batches of `size`; the last one is padded with NaN, which must not matter."""
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        here = len(x[rows])
        padding = np.full((size - here, *x.shape[1:]), np.nan, x.dtype)
        yield {
            "image": np.concatenate([x[rows], padding]),
            "label": np.concatenate([labels[rows], np.zeros(size - here, np.int32)]),
            "mask": np.arange(size) < here,
        }


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_evaluation_counts_each_example_once(api, own):
    network, variables = made(api)
    x = images()
    labels = np.arange(EXAMPLES, dtype=np.int32) % 4
    size = 8 if not own else 32  # of one batch: its statistics are those of all images
    found = evaluate.score(network, variables, batches(x, labels, size), own=own)
    linen, _ = made()  # both are the same function, and one is compiled
    if own:
        logits, _ = linen.train(variables, jnp.asarray(x), None)
    else:
        logits = linen.infer(variables, jnp.asarray(x))
    wide = np.asarray(logits, np.float64)
    chosen = wide[np.arange(EXAMPLES), labels]
    assert found["examples"] == EXAMPLES
    assert found["accuracy"] == pytest.approx((wide.argmax(-1) == labels).mean())
    loss = np.log(np.exp(wide).sum(-1)) - chosen
    assert found["loss"] == pytest.approx(loss.mean(), rel=1e-4)


def test_nothing_to_evaluate_is_an_error():
    network, variables = made()
    with pytest.raises(UserError, match="must have at least one example, got none"):
        evaluate.score(network, variables, [], own=False)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_precise_statistics_are_those_of_the_population(api):
    network, variables = made(api)
    x, labels = images(), np.zeros(EXAMPLES, np.int32)
    new = recalibrate.recalibrated(network, variables, batches(x, labels, 8))
    kernel = variables.params["stem_conv"]["kernel"]
    seen = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wide = np.asarray(seen, np.float64)
    stem = new.batch_stats["stem_norm"]
    np.testing.assert_allclose(stem["mean"], wide.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stem["var"], wide.var((0, 1, 2)), rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert new.params["stem_conv"]["kernel"] is not None
    old = variables.params["head"]["kernel"]
    np.testing.assert_array_equal(new.params["head"]["kernel"], old)


def test_with_one_batch_precise_inference_is_the_training_pass():
    """Every layer then sees what it saw when its statistics were taken."""
    network, variables = made()
    x, labels = images(), np.zeros(EXAMPLES, np.int32)
    new = recalibrate.recalibrated(network, variables, batches(x, labels, 32))
    want, _ = network.train(variables, jnp.asarray(x), None)
    np.testing.assert_allclose(network.infer(new, x), want, rtol=1e-4, atol=1e-4)


def test_training_images_are_taken_up_to_the_number_asked_for(monkeypatch):
    def endless(data, *, batch_size, seed, process, processes):
        assert (seed, process, processes) == (3, 0, 1)
        while True:
            yield {"image": np.zeros((batch_size, 2, 2, 3), np.float32)}

    monkeypatch.setattr(recalibrate.pipeline, "train_batches", endless)
    begun = config.ScaleConfig(seed=3)
    masks = [b["mask"] for b in recalibrate.training_batches(begun, 10, 4)]
    assert [mask.sum() for mask in masks] == [4, 4, 2]


@pytest.mark.parametrize(
    ("api", "norm"),
    [
        ("linen", "flax"),
        ("nnx", "jaxbn"),
        pytest.param("linen", "jaxbn", marks=pytest.mark.slow),
        pytest.param("nnx", "flax", marks=pytest.mark.slow),
    ],
)
def test_a_folded_network_gives_the_same_logits(api, norm):
    network, variables = made(api, norm=norm)
    result = folded(api, norm)
    assert not result.report.kept and len(result.report.folded) == 3
    other = jnp.asarray(images(seed=2))
    want = network.infer(variables, other)
    np.testing.assert_allclose(jax.jit(result.infer)(other), want, rtol=1e-5, atol=1e-5)
    assert result.difference <= 1e-5


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_an_exported_network_gives_the_same_logits_for_any_batch(api, tmp_path):
    network, variables = made(api)
    x = jnp.asarray(images())
    content = export.exported(folded(api).infer, x)
    assert export.check(content, network, variables, x) <= 1e-5
    path = tmp_path / "network"
    path.write_bytes(content)
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    want = network.infer(variables, x)
    for count in (1, 3, EXAMPLES):
        found = program.call(x[:count])
        np.testing.assert_allclose(found, want[:count], rtol=1e-5, atol=1e-5)
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}


def test_an_export_that_differs_is_refused():
    network, variables = made()
    x = jnp.asarray(images())
    wrong = jax.tree.map(lambda leaf: leaf * 1.1, variables)
    content = export.exported(lambda x: network.infer(wrong, x), x)
    with pytest.raises(UserError, match=r"must give the outputs of the run, but dif"):
        export.check(content, network, variables, x)


@pytest.mark.slow
def test_bfloat16_is_folded_within_its_rounding():
    network, variables = made(dtype="bfloat16")
    x = jnp.asarray(images())
    result = fold.folded(network, variables, x, dtype="bfloat16")
    assert not result.report.kept
    content = export.exported(result.infer, x)
    assert export.check(content, network, variables, x, dtype="bfloat16") < 0.1


def test_statistics_are_written_and_read(tmp_path):
    _, variables = made()
    arrays.write_statistics(tmp_path, variables.batch_stats, {"samples": 3})
    path = tmp_path / "batch_stats.safetensors"
    found = arrays.read_tree(path, like=variables.batch_stats)
    assert jax.tree.structure(found) == jax.tree.structure(variables.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, found, variables.batch_stats)
    with pytest.raises(UserError, match="must have the statistics of this network"):
        arrays.read_tree(path, like=variables.params)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="must be a file with running statistics"):
        arrays.read_tree(path, like=variables.batch_stats)


@pytest.mark.parametrize(
    ("leaf", "values", "message"),
    [
        (
            "var",
            np.ones(16, np.int32),
            r"stem_norm/var as float32\[16\], got int32\[16\]",
        ),
        ("mean", np.zeros(16), r"stem_norm/mean as float32\[16\], got float64\[16\]"),
        ("mean", np.zeros((16, 1), np.float32), r"got float32\[16, 1\]"),
        ("mean", np.float32([np.nan] * 16), "must have finite values of .*norm/mean"),
        ("var", np.float32([np.inf] * 16), "must have finite values of .*norm/var"),
        ("count", np.float32([-np.inf] * 16), "must have finite values of .*count"),
        (
            "var",
            np.float32([1] * 15 + [-1e-9]),
            "must have no negative .*var, got -1e-",
        ),
        ("count", np.float32([-1] * 16), "must have no negative .*norm/count, got -1"),
    ],
)
def test_statistics_that_no_data_have_are_refused(tmp_path, leaf, values, message):
    _, variables = made()
    found = jax.tree.map(np.asarray, variables.batch_stats)
    found["stem_norm"][leaf] = values
    arrays.write_statistics(tmp_path, found, {})
    with pytest.raises(UserError, match=message) as error:
        arrays.read_tree(tmp_path / arrays._STATISTICS, like=variables.batch_stats)
    assert "\n" not in str(error.value)


def test_results_never_go_into_a_directory_in_use(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="`--to` must be a new or an empty directory"):
        arrays.new_folder(tmp_path, option="--to")


def test_results_go_where_files_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="`--to` must be a directory that can be writt"):
        arrays.new_folder(tmp_path / "file" / "below", option="--to")
    found = arrays.new_folder(tmp_path / "new" / "folder", option="--to")
    assert found.is_dir() and not any(found.iterdir())


def test_an_export_that_cannot_be_written_is_not_computed(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(arrays, "load_run", lambda *a, **k: (None, None, None))
    begun = export.ExportConfig(to=tmp_path / "file" / "below" / "network")
    with pytest.raises(UserError, match="`--to` must be a directory that can be writt"):
        export.main(begun)
