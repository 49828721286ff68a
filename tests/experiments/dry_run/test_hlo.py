"""The reader of optimized HLO, on small texts whose numbers are worked out by hand."""

import pytest

from experiments.dry_run import hlo

STEP = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_sum (param_0: s32[]) -> s32[] {
  %param_0 = s32[] parameter(0)
  ROOT %pmax = s32[] all-reduce(%param_0), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}

%body (state: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %state = (s32[], f32[16,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %rows = f32[16,4]{1,0} get-tuple-element(%state), index=1
  %all-to-all-start.1 = ((f32[16,4]{1,0}), f32[16,4]{1,0}) all-to-all-start(%rows), replica_groups=[2,2]<=[4]
  %all-to-all-done.1 = f32[16,4]{1,0} all-to-all-done(%all-to-all-start.1)
  ROOT %next = (s32[], f32[16,4]{1,0}) tuple(%count, %all-to-all-done.1)
}

%test (state: (s32[], f32[16,4])) -> pred[] {
  %state.1 = (s32[], f32[16,4]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%once (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  ROOT %scattered = bf16[8]{0} reduce-scatter(%x), replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, to_apply=%add
}

ENTRY %main (p: f32[16,4], n: s32[]) -> f32[16,4] {
  %p = f32[16,4]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %fusion-start = ((s32[]), s32[]) fusion-start(%n), kind=kCustom, calls=%fused_sum
  %fusion-done = s32[] fusion-done(%fusion-start)
  %gathered = f32[64,4]{1,0} all-gather(%p), replica_groups={}, dimensions={0}
  %all-gather-start = (f32[16,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%p), replica_groups=[2,2]<=[2,2]T(1,0)
  %all-gather-done = f32[32,4]{1,0} all-gather-done(%all-gather-start)
  %kernel = (bf16[8]{0}, s32[4]{0}) custom-call(%p), custom_call_target="mosaic_gpu_v2", backend_config="x"
  %start = (s32[], f32[16,4]{1,0}) tuple(%n, %p)
  %loop = (s32[], f32[16,4]{1,0}) while(%start), condition=%test, body=%body, x={"known_trip_count":{"n":"5"}}
  %other = (s32[], f32[16,4]{1,0}) while(%start), condition=%test, body=%body
  %half = bf16[8]{0} get-tuple-element(%kernel), index=0
  %called = bf16[8]{0} call(%half), to_apply=%once
  ROOT %out = f32[16,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_with_their_bytes_groups_and_runs():
    found = sorted(hlo.read(STEP).collectives(), key=lambda one: (one.kind, one.bytes))
    assert [(one.kind, one.bytes, one.groups, one.times) for one in found] == [
        ("all-gather", 32 * 4 * 4, ((0, 2), (1, 3)), 1),
        ("all-gather", 64 * 4 * 4, (), 1),
        ("all-reduce", 4, ((0, 1, 2, 3),), 1),  # inside of a fusion
        ("all-to-all", 16 * 4 * 4, ((0, 1), (2, 3)), 6),  # five trips that are known, and a loop whose are not
        ("reduce-scatter", 2 * 8 * 2, ((0, 1), (2, 3)), 1),  # of what goes in
    ]


def test_mosaic_kernels_are_counted():
    assert hlo.read(STEP).mosaic_calls() == 1
    assert hlo.read(STEP.replace("mosaic_gpu_v2", "__cublas$gemm")).mosaic_calls() == 0


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,3},{1,2}}, x", ((0, 3), (1, 2))),
        ("replica_groups=[4,2]<=[8], x", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=[3,4]<=[2,3,2]T(1,0,2), x", ((0, 1, 6, 7), (2, 3, 8, 9), (4, 5, 10, 11))),
        ("replica_groups=mesh['data'=4] {'data'}, x", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data','fsdp'}, x", ((0, 1, 2, 3),)),
        ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
        ("replica_groups={}, x", ()),
    ],
)
def test_groups_however_they_are_written(text, groups):
    assert hlo.replica_groups(text) == groups


@pytest.mark.parametrize(
    "text", ["replica_groups=@mesh_0", "replica_groups=mesh['a'=4] {'a':(2)2}", "replica_groups=mesh['a'=4,b] {'a'}"]
)
def test_groups_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError, match="cannot read the replica groups"):
        hlo.replica_groups(text)


def moved(body: str, entry: str) -> float:
    text = f"HloModule m\n\n%fused (q: f32[1]) -> f32[1] {{\n{body}\n}}\n\n"
    return hlo.read(f"{text}ENTRY %main (p: s32[]) -> s32[] {{\n{entry}\n}}\n").moved()


TABLE, IDS, ROWS = 4 * 1000 * 8, 4 * 16, 4 * 16 * 8


def test_a_fusion_moves_its_operands_and_its_result():
    body = """  %p0 = f32[1000,8]{1,0} parameter(0)
  ROOT %twice = f32[1000,8]{1,0} add(%p0, %p0)"""
    entry = """  %t = f32[1000,8]{1,0} parameter(0)
  ROOT %f = f32[1000,8]{1,0} fusion(%t), kind=kLoop, calls=%fused"""
    assert moved(body, entry) == 2 * TABLE


def test_of_a_table_the_rows_that_are_read_count():
    body = """  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[16]{0} parameter(1)
  %same = f32[1000,8]{1,0} bitcast(%p0)
  %rows = f32[16,8]{1,0} gather(%same, %p1), slice_sizes={1,8}
  ROOT %negative = f32[16,8]{1,0} negate(%rows)"""
    entry = """  %t = f32[1000,8]{1,0} parameter(0)
  %i = s32[16]{0} parameter(1)
  ROOT %f = f32[16,8]{1,0} fusion(%t, %i), kind=kLoop, calls=%fused"""
    assert moved(body, entry) == 2 * ROWS + IDS
    whole = body.replace("negate(%rows)", "negate(%rows)\n  %all = f32[1000,8]{1,0} negate(%p0)")
    assert moved(whole, entry) == TABLE + ROWS + IDS


def test_of_a_table_the_rows_that_are_written_count():
    body = """  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[16]{0} parameter(1)
  %p2 = f32[16,8]{1,0} parameter(2)
  ROOT %new = f32[1000,8]{1,0} scatter(%p0, %p1, %p2), to_apply=%add"""
    entry = """  %t = f32[1000,8]{1,0} parameter(0)
  %i = s32[16]{0} parameter(1)
  %r = f32[16,8]{1,0} parameter(2)
  ROOT %f = f32[1000,8]{1,0} fusion(%t, %i, %r), kind=kInput, calls=%fused"""
    # The rows are read, and those of the table are read and written.
    assert moved(body, entry) == 3 * ROWS + IDS


def test_what_runs_elsewhere_moves_nothing_here():
    # Of `STEP` nothing but collectives, a kernel and loops around them runs.
    assert hlo.read(STEP).moved() == 0


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no computation marked ENTRY"):
        hlo.read("HloModule m\n\n%f (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}\n")
