"""The inner loops of short pieces of SASS whose instructions can be counted by hand."""

import pytest

from pallas_kernels.compile_check.sass import Loop, compute_loop, inner_loops, kind_of


def sass(*lines: str) -> str:
    """Lines such as "loop:" and "@P0 BRA loop" as nvdisasm prints them."""
    text = ['\t.section\t.text.kernel,"ax",@progbits', "kernel:", ".text.kernel:"]
    for i, line in enumerate(lines):
        if line.endswith(":"):
            text.append(f".{line}")
            continue
        predicate, _, rest = line.rpartition("@")[2].partition(" ") if line.startswith("@") else ("", "", line)
        name, _, operands = rest.partition(" ")
        if name.startswith("BRA") or name == "BSSY":
            *others, target = operands.split(", ")
            operands = ", ".join([*others, f"`(.{target})"])
        text.append(f"        /*{16 * i:04x}*/ {'@' + predicate if predicate else '':>10} {name} {operands} ;")
    return "\n".join([*text, "\t.section\t.nv.shared", ""])


OUT_OF_LINE = (
    "S2R R0, SR_TID.X",
    "item:",
    "LDG.E R1, desc[UR4][R2.64]",
    "tile:",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR9], R2",
    "@!P1 BRA wait",
    "ready:",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "MUFU.TANH R4, R4",
    "FFMA R4, R4, R5, R6",
    "FMUL R4, R4, R5",
    "F2FP.BF16.F32.PACK_AB R24, R25, R24",
    "@P2 BRA tile",
    "STSM.16.MT88.4 [R3], R4",
    "BRA.U UP0, item",
    "EXIT",
    "wait:",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R14+URZ], R2",
    "@!P1 NANOSLEEP.SYNCS 0x989680",
    "@!P1 BRA wait",
    "BRA ready",
)


def test_a_loop_holds_what_ptxas_put_behind_it_but_for_the_wait():
    (loop,) = inner_loops(sass(*OUT_OF_LINE))
    # The branch back from the wait counts, the three instructions that wait do not.
    assert loop.kinds == {"barrier": 2, "control": 3, "convert": 1, "fma": 2, "matrix": 1, "mufu": 1}
    assert loop.instructions == 10
    assert loop.shortest == loop.kinds | {"control": 2}  # what need not wait does not branch back
    # The loop around it, without those of this one and without the wait.
    assert loop.around == {"control": 1, "global": 1, "shared": 1}


def test_a_trip_takes_the_longer_branch():
    lines = (
        "tile:",
        "@P0 BRA second",
        "FMNMX R0, R1, R2, PT",
        "SEL R1, R2, R3, P0",
        "BRA done",
        "second:",
        "FADD R0, R1, R2",
        "FADD2 R0, R1, R2",
        "FFMA2 R0, R1, R2, R3",
        "FMUL R0, R1, R2",
        "done:",
        "MUFU.EX2 R0, R0",
        "@!P1 BRA tile",
        "EXIT",
    )
    (loop,) = inner_loops(sass(*lines))
    longest = {"control": 2, "fma": 2, "fma2": 2, "mufu": 1}
    assert loop == Loop(7, longest, {"control": 3, "integer": 1, "minmax": 1, "mufu": 1}, {})


def test_each_role_of_a_program_has_its_loop_and_the_loader_none():
    lines = (
        "@P0 BRA products",
        "load:",
        "UTMALDG.4D [UR8], [UR6]",
        "BRA.U UP1, load",
        "EXIT",
        "products:",
        "@P1 BRA scores",
        "issue:",
        "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UP0",
        "UTCBAR [UR5], URZ",
        "@P2 BRA issue",
        "EXIT",
        "scores:",
        "LDTM.x16 R28, tmem[UR4]",
        "MUFU.TANH R4, R28",
        "MUFU.TANH R5, R29",
        "STTM.x16 tmem[UR4], R28",
        "@P3 BRA scores",
        "EXIT",
    )
    issue, scores = inner_loops(sass(*lines))
    assert issue.kinds == {"barrier": 1, "control": 1, "matrix": 1}
    assert scores.kinds == {"control": 1, "mufu": 2, "tensor_memory": 2}
    assert compute_loop((issue, scores)) == scores
    assert compute_loop((issue,)) is None and compute_loop(()) is None
    packed = Loop(3, {"fma2": 3})
    assert compute_loop((issue, packed)) == packed
    assert issue.around == scores.around == {}


def test_what_is_around_a_loop_leaves_out_its_sisters():
    lines = (
        "item:",
        "LDG.E R1, desc[UR4][R2.64]",
        "turn:",
        "FSEL R9, R8, RZ, P0",
        "first:",
        "FADD R0, R1, R2",
        "@P0 BRA first",
        "@P2 BRA narrow",
        "FMUL R0, R1, R2",
        "FMUL R1, R1, R2",
        "narrow:",
        "second:",
        "MUFU.EX2 R0, R0",
        "@P1 BRA second",
        "STS [R3], R0",
        "@P3 BRA turn",
        "@P4 BRA item",
        "EXIT",
    )
    first, second = inner_loops(sass(*lines))
    # The turn and not the item, the longer way past the branch.
    assert first.around == second.around == {"control": 2, "fma": 2, "integer": 1, "shared": 1}


def test_a_branch_back_to_what_does_not_dominate_it_is_no_loop():
    assert inner_loops(sass("@P0 BRA b", "a:", "FADD R0, R0, R1", "EXIT", "b:", "MUFU.EX2 R0, R0", "BRA a")) == ()


def test_instructions_have_kinds():
    kinds = {
        "matrix": ("HGMMA", "QGMMA", "HMMA", "UTCHMMA", "UTCQMMA"),
        "fma": ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2"),
        "fma2": ("FFMA2", "FMUL2", "FADD2"),
        "minmax": ("FMNMX", "FMNMX3"),
        "integer": ("SEL", "PRMT", "LOP3", "IADD3", "IMAD", "ISETP", "CS2R"),
        "convert": ("F2F", "F2FP", "I2F", "I2FP"),
        "shared": ("LDS", "STS", "STSM", "LDSM"),
        "global": ("LDG", "STG"),
        "tensor_memory": ("LDTM", "STTM"),
        "tma": ("UTMALDG", "UTMASTG", "UTMACMDFLUSH"),
        "barrier": ("SYNCS", "BAR", "WARPSYNC", "UTCBAR"),
        "uniform": ("UIADD3", "UMOV", "R2UR"),
        "other": ("SHFL", "LDC", "ELECT"),
    }
    assert {name: kind_of(name) for names in kinds.values() for name in names} == {
        name: kind for kind, names in kinds.items() for name in names
    }


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ValueError, match="no disassembly"):
        inner_loops("ptxas info    : Used 168 registers")
    with pytest.raises(ValueError, match="BRX at 0000 has no target"):
        inner_loops(sass("BRX R2 -0x10", "EXIT"))
    with pytest.raises(ValueError, match="nowhere, which the function does not have"):
        inner_loops(sass("@P0 BRA nowhere", "EXIT"))


def test_the_loop_with_the_score_function_has_mufu_where_any_has():
    norm, score = Loop(9, {"fma2": 9}), Loop(5, {"fma": 1, "mufu": 4})
    assert compute_loop((norm, score)) is score
    # As with ReLU.
    assert compute_loop((Loop(3, {"fma": 3}), norm)) is norm
    assert compute_loop((Loop(3, {"matrix": 3}),)) is None
