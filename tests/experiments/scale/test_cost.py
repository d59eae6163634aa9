"""The collectives of a compiled step are those of the cost model."""

import dataclasses
import functools
import json
import math

import jax
import pytest

from experiments import __main__ as command
from experiments.collectives import cost, hlo
from experiments.collectives import main as collectives
from experiments.nets import resnet

LINK = cost.Link(1e-6, 1e9, "made up")
WAYS = [cost.ring, cost.tree, cost.doubling]

PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[4]) -> f32[4] {
  %ar.1 = f32[4]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add, \
metadata={op_name="jit(step)/net/norm1/cond/sum"}
}

%again (p: f32[4]) -> f32[4] {
  ROOT %c = f32[4]{0} call(%p), to_apply=%inner
}

%done (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %ar.2 = (bf16[2,3]{1,0}, f32[], /*index=2*/f32[5]{0}) all-reduce(%x, %y, %z), \
replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="a/transpose(jvp(b))/norm1"}
  %ag = f32[8]{0} all-gather(%x), replica_groups=mesh['d'=4,'e'=2] {'d'}, dimensions={0}
  %start = f32[6]{0} all-reduce-start(%x), replica_groups=mesh['d'=8,'e'=2] \
{'d':(2)4,'e'}, to_apply=%add
  %done.1 = f32[6]{0} all-reduce-done(%start)
  ROOT %r = f32[4]{0} conditional(%i, %x, %x), branch_computations={%again, %done}
}
"""


def test_collectives_are_read_from_text():
    found = {c.kind + str(n): c for n, c in enumerate(hlo.collectives(PROGRAM))}
    inside, combined, gather, started = found.values()
    assert inside == hlo.Collective(
        "all-reduce", (("f32", (4,)),), 2, "jit(step)/net/norm1/cond/sum", True
    )
    assert combined.types == (("bf16", (2, 3)), ("f32", ()), ("f32", (5,)))
    assert (combined.bytes, combined.devices) == (12 + 4 + 20, 4)
    assert combined.is_backward and not combined.in_branch
    assert (gather.kind, gather.devices, gather.bytes) == ("all-gather", 4, 32)
    assert (started.kind, started.devices, started.bytes) == ("all-reduce", 8, 24)


@pytest.mark.parametrize("way", WAYS)
def test_an_all_reduce_of_one_device_takes_no_time(way):
    assert way(1e6, 1, LINK) == 0


@pytest.mark.parametrize("way", WAYS)
def test_two_devices_exchange_everything(way):
    """n bytes each way: doubling in one message, the others in two halves."""
    messages = 1 if way is cost.doubling else 2
    assert way(1e6, 2, LINK) == pytest.approx(messages * 1e-6 + 1e-3)


def test_small_sums_cost_latency_and_large_ones_bandwidth():
    small, large = 1e3, 1e9
    for devices in (8, 64, 4096):
        rounds = math.log2(devices)
        assert cost.all_reduce(small, devices, LINK) <= rounds * 2.1e-6
        moved = 2 * (devices - 1) / devices * large / LINK.bandwidth
        assert cost.all_reduce(large, devices, LINK) == pytest.approx(moved, rel=1e-3)
        assert cost.ring(small, devices, LINK) >= 2 * (devices - 1) * LINK.latency


def test_the_largest_layer_of_resnet_50_takes_90_kilobytes():
    layer = cost.Layer("norm3", 2048)
    assert cost.layer_bytes(layer) == (73_728, 16_384)


def test_statistics_of_groups_do_not_depend_on_the_number_of_devices():
    layers = [cost.Layer(str(n), 64) for n in range(3)]
    found = cost.statistics_seconds(layers, 8, LINK)
    once = cost.all_reduce(9 * 256, 8, LINK) + cost.all_reduce(2 * 256, 8, LINK)
    assert found == pytest.approx(3 * once)


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """A third of the smallest network: the stem and a strided block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "blocks", lambda counts: [("stage2_block1", 1, 2)])
        yield


def small(**changes):
    options = {"depth": 8, "devices": (8,), **changes}
    return collectives.CollectivesConfig(**options)


_compile = collectives.compiled


@functools.cache
def compiled(config):
    return _compile(config, jax.devices()[:8])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "explicit", "shard_map"])
def test_a_step_sends_what_the_model_says(parallel):
    program = compiled(small(parallel=parallel))
    record = collectives.summary(program)
    assert collectives.within(record)
    assert record["most_all_reduces_of_a_layer"] == {"forward": 1, "backward": 1}
    assert record["statistics_ratio"] == 1
    assert record["statistics_all_reduces"] == 2 * record["layers"] == 6
    assert record["others"] == {}
    assert record["group_sizes"] == [8]
    # Beside gradients and statistics: the loss and the accuracy.
    assert record["total_bytes"] - record["model_total_bytes"] == 8
    before = record["all_reduces_before_combining"]
    assert record["all_reduces_after_combining"] < before
    assert record["arrays_of_the_largest_after_combining"] > 1


@pytest.mark.slow
def test_statistics_are_float32_in_a_bfloat16_network():
    program = collectives.compiled(small(dtype="bfloat16"), jax.devices()[:8])
    assert collectives.summary(program)["statistics_ratio"] == 1


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    def known(config, devices):
        assert devices == jax.devices()[:8]
        return compiled(dataclasses.replace(config, out=small().out))

    monkeypatch.setattr(collectives, "compiled", known)
    arguments = ["--devices", "8", "--depth", "8", "--out", str(tmp_path)]
    assert command.main(["collectives", *arguments]) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "collectives.md").read_text()
    assert table.splitlines()[2] in printed
    assert "| 8 | 3 | 1 + 1 | 3,520 | 3,520 | 1.000 |" in table
    record = json.loads((tmp_path / "collectives.json").read_text())
    assert record["programs"][0]["devices"] == 8
    assert "| Ethernet | 4096 |" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "1"], "`--devices` must be numbers of at least 2, got (1,)."),
        (["--examples", "0"], "`--examples` must be at least 1, got 0."),
        (["--devices", "100000"], "`--devices` must be at most 8"),
    ],
)
def test_wrong_options_are_one_line(options, message, capsys):
    assert len(jax.devices()) == 8  # known from here on
    assert command.main(["collectives", *options]) == 2
    assert message in capsys.readouterr().err
