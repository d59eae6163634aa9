"""Bytes, kernels and conditionals are read from the text of a program."""

import pytest

from experiments.bench.compilers import hlo, text

KIB = 1024  # f32[256]
CALLED = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%double (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %twice = f32[256]{0} fusion(%p), kind=kLoop, calls=%fused_double
}

%fused_double (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %r = f32[256]{0} add(%q, %q)
}

%negative (p.1: f32[256]) -> f32[256] {
  %p.1 = f32[256]{0} parameter(0)
  %once = f32[256]{0} negate(%p.1)
  ROOT %again = f32[256]{0} negate(%once)
}

%fused_slice (x.1: f32[256], y.1: f32[64]) -> f32[64] {
  %x.1 = f32[256]{0} parameter(0)
  %y.1 = f32[64]{0} parameter(1)
  %renamed = f32[16,16]{1,0} bitcast(%x.1)
  %wider = f32[16,16]{1,0} convert(%renamed)
  %part = f32[4,16]{1,0} slice(%wider), slice={[0:4], [0:16]}
  %flat = f32[64]{0} bitcast(%part)
  ROOT %s = f32[64]{0} add(%flat, %y.1)
}

%fused_both (x.2: f32[256]) -> f32[] {
  %x.2 = f32[256]{0} parameter(0)
  %zero = f32[] constant(0)
  %all = f32[] reduce(%x.2, %zero), dimensions={0}, to_apply=%sum
  %first = f32[1]{0} slice(%x.2), slice={[0:1]}
  %one = f32[] bitcast(%first)
  ROOT %t = f32[] add(%all, %one)
}

%fused_update (into: f32[256], new: f32[32], at: s32[]) -> f32[256] {
  %into = f32[256]{0} parameter(0)
  %new = f32[32]{0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %u = f32[256]{0} dynamic-update-slice(%into, %new, %at)
}

%fused_fresh (new.1: f32[32], at.1: s32[]) -> f32[256] {
  %new.1 = f32[32]{0} parameter(0)
  %at.1 = s32[] parameter(1)
  %nothing = f32[] constant(0)
  %zeros = f32[256]{0} broadcast(%nothing), dimensions={}
  ROOT %u.1 = f32[256]{0} dynamic-update-slice(%zeros, %new.1, %at.1)
}

%fused_two (x.3: f32[256]) -> (f32[256], f32[]) {
  %x.3 = f32[256]{0} parameter(0)
  %zero.1 = f32[] constant(0)
  %total = f32[] reduce(%x.3, %zero.1), dimensions={0}, to_apply=%sum
  %changed = f32[256]{0} negate(%x.3)
  ROOT %pair = (f32[256]{0}, f32[]) tuple(%changed, %total)
}

%body (state: (f32[256], s32[])) -> (f32[256], s32[]) {
  %state = (f32[256]{0}, s32[]) parameter(0)
  %values = f32[256]{0} get-tuple-element(%state), index=0
  %step = s32[] get-tuple-element(%state), index=1
  %row = f32[32]{0} dynamic-slice(%values, %step), dynamic_slice_sizes={32}
  %back = f32[256]{0} dynamic-update-slice(%values, %row, %step)
  ROOT %next = (f32[256]{0}, s32[]) tuple(%back, %step)
}

%condition (state.1: (f32[256], s32[])) -> pred[] {
  %state.1 = (f32[256]{0}, s32[]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%async_scatter (a.2: f32[256]) -> f32[64] {
  %a.2 = f32[256]{0} parameter(0)
  ROOT %rs = f32[64]{0} reduce-scatter(%a.2), dimensions={0}, to_apply=%sum
}
"""


def counts(*lines, **options):
    """The counts of an entry computation of these lines."""
    entry = [
        "ENTRY %main (x: f32[256], y: f32[64], n: s32[], v: f32[32]) -> f32[256] {",
        "  %x = f32[256]{0} parameter(0)",
        "  %y = f32[64]{0} parameter(1)",
        "  %n = s32[] parameter(2)",
        "  %v = f32[32]{0} parameter(3)",
        *(f"  {line}" for line in lines),
        "}",
    ]
    return hlo.counts("\n".join(["HloModule m", CALLED, *entry, ""]), **options)


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("ROOT %o = f32[256]{0} fusion(%x), kind=kLoop, calls=%fused_double", 2 * KIB),
        ("ROOT %o = f32[64]{0} fusion(%x, %y), calls=%fused_slice", 3 * KIB // 4),
        ("ROOT %o = f32[] fusion(%x), kind=kInput, calls=%fused_both", KIB + 4),
        (
            "ROOT %o = (f32[256]{0}, f32[]) fusion(%x), kind=kInput, calls=%fused_two",
            2 * KIB + 4,
        ),
        ("ROOT %o = f32[32]{0} dynamic-slice(%x, %n)", 2 * 128 + 4),
        ("ROOT %o = f32[256]{0} dynamic-update-slice(%x, %v, %n)", 2 * 128 + 4),
        ("ROOT %o = f32[256]{0} fusion(%x, %v, %n), calls=%fused_update", 2 * 128 + 4),
        ("ROOT %o = f32[256]{0} fusion(%v, %n), calls=%fused_fresh", KIB + 128 + 4),
        ("ROOT %o = f32[64,256]{1,0} broadcast(%x), dimensions={1}", 65 * KIB),
        ("ROOT %o = bf16[256]{0} convert(%x)", KIB + KIB // 2),
        ("ROOT %o = f32[256]{0} all-reduce(%x), to_apply=%sum", 2 * KIB),
        ('ROOT %o = (f32[9]{0}, u8[0]{0}) custom-call(%x), target="c"', KIB + 36),
    ],
)
def test_a_kernel_counts_with_what_it_reads_and_writes(line, moved):
    found = counts(line)
    assert found == hlo.Counts(bytes=moved, kernels=1)


@pytest.mark.parametrize(
    "line",
    [
        "ROOT %o = f32[16,16]{1,0} bitcast(%x)",
        "ROOT %o = (f32[256]{0}) tuple(%x)",
        'ROOT %o = f32[256]{0} custom-call(%x), custom_call_target="ConcatBitcast"',
    ],
)
def test_what_only_renames_is_free(line):
    assert counts(line) == hlo.Counts()


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%double, %negative}",
        "true_computation=%double, false_computation=%negative",
    ],
)
def test_both_branches_of_a_conditional_count(branches):
    found = counts(f"ROOT %o = f32[256]{{0}} conditional(%n, %x, %x), {branches}")
    assert found == hlo.Counts(bytes=6 * KIB, kernels=3, conditionals=1)


@pytest.mark.parametrize(
    ("known", "trips"), [('"known_trip_count":{"n":"5"}', 5), ("", 1)]
)
def test_the_body_of_a_loop_counts_as_often_as_it_runs(known, trips):
    found = counts(
        "%start = (f32[256]{0}, s32[]) tuple(%x, %n)",
        "ROOT %o = (f32[256]{0}, s32[]) while(%start), condition=%condition, "
        f"body=%body, backend_config={{{known}}}",
    )
    once = 4 * 128 + 8
    assert found == hlo.Counts(bytes=trips * once, kernels=trips * 2, loops=1)


def test_a_call_counts_as_what_is_called():
    found = counts("ROOT %o = f32[256]{0} call(%x), to_apply=%negative")
    assert found == hlo.Counts(bytes=4 * KIB, kernels=2)


@pytest.mark.parametrize(
    ("start", "done", "expected"),
    [
        (
            "f32[256]{0} all-reduce-start(%x), to_apply=%sum",
            "f32[256]{0} all-reduce-done(%s)",
            hlo.Counts(bytes=2 * KIB, kernels=1),
        ),
        (
            "(f32[64]{0}, f32[256]{0}) all-gather-start(%y), dimensions={0}",
            "f32[256]{0} all-gather-done(%s)",
            hlo.Counts(bytes=KIB + KIB // 4, kernels=1),
        ),
        (
            "((f32[256]{0}), f32[64]{0}) async-start(%x), calls=%async_scatter",
            "f32[64]{0} async-done(%s)",
            hlo.Counts(bytes=KIB + KIB // 4, kernels=1),
        ),
        (
            "(f32[256]{0}, f32[256]{0}, u32[]) copy-start(%x)",
            "f32[256]{0} copy-done(%s)",
            hlo.Counts(bytes=2 * KIB, moves=1),
        ),
        (
            "((f32[256]{0}), f32[64]{0}, s32[]) slice-start(%x), slice={[0:64]}",
            "f32[64]{0} slice-done(%s)",
            hlo.Counts(bytes=KIB // 2, moves=1),
        ),
    ],
)
def test_a_start_and_its_done_count_once(start, done, expected):
    assert counts(f"%s = {start}", f"ROOT %o = {done}") == expected


def test_memory_on_the_chip_counts_by_itself():
    lines = (
        "%s = (f32[256]{0:T(256)S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[256]{0:T(256)S(1)} copy-done(%s)",
        "ROOT %o = f32[256]{0:T(256)} negate(%d)",
    )
    found = counts(*lines, on_chip=frozenset({1, 2}))
    assert found == hlo.Counts(bytes=2 * KIB, on_chip=2 * KIB, kernels=1, moves=1)
    assert counts(*lines) == hlo.Counts(bytes=4 * KIB, kernels=1, moves=1)


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        ("bf16[3,5]{1,0}", 30),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 2 * 8 * 128),
        ("bf16[3,5]{0,1:T(8,128)(2,1)}", 2 * 8 * 128),
        ("f32[64,7,130]{2,0,1:T(8,128)}", 4 * 64 * 7 * 256),
        ("f32[]{:T(128)}", 4),
        ("pred[7]", 7),
        ("(f32[2]{0}, /*index=1*/s32[3]{0})", 20),
    ],
)
def test_arrays_have_the_size_of_their_tiles(type_, size):
    one = text.Instruction("a", type_, "add", (), -1, "", is_root=True)
    assert sum(array.bytes for array in one.arrays) == size


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="must be a program with an ENTRY"):
        hlo.counts("HloModule m\n")
