"""The inner loops of a disassembled kernel, and how many instructions of each kind a trip issues.

A Mosaic kernel is one program for all its warps: one loop loads, another issues the products (on sm_100), another has
the score function. What a thread issues there for each score is what bounds it where the tensor cores do not, so these
counts say without a chip what a change costs or saves.

Loops are the natural loops of the flow graph: ptxas puts the waits behind the rest of the program, so addresses alone
do not tell what belongs to a loop. A loop that only waits for a barrier is none of a kernel's inner loops, and its
instructions are not counted in the one around it. A trip is the longest way through the loop: where it has a branch for
each slot it takes one of them, where only some tiles are masked it masks.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

KINDS: Mapping[str, str] = {
    "matrix": r"[HQIDO]G?MMA|UTC\w*MMA",
    "mufu": r"MUFU",
    "fma": r"(F(FMA|MUL|ADD)|H(FMA|MUL|ADD)2)(_32I)?",
    "fma2": r"F(FMA|MUL|ADD)2",
    "minmax": r"[FH]MNMX[23]?",
    "convert": r"[FI]2[FI]P?",
    "shared": r"(LD|ST|ATOM)S|LDSM|STSM",
    "global": r"(LD|ST|ATOM|RED)G?|LDGSTS",
    "tensor_memory": r"LDTM|STTM|UTCCP",
    "tma": r"UTMA\w+|UBLK\w+",
    "barrier": r"SYNCS|UTCBAR|BAR|WARPSYNC|WARPGROUP|DEPBAR|FENCE|MEMBAR|NANOSLEEP",
    "control": r"BRA|BRX|JMP|EXIT|CALL|RET|BSSY|BSYNC|BREAK|NOP|BPT",
    "uniform": r"U\w+|R2UR|S2UR|VOTEU|LDCU|R2P",
    "integer": r"SEL|FSEL|PRMT|LOP3|PLOP3|IADD3?|IMAD|ISETP|FSETP|SHF|LEA|MOV|CS2R|VIADD|V?IMNMX3?|SGXT|IABS",
}
"""Kind -> pattern of the names of its instructions (O), the first that matches; the rest is "other".

"fma" has FFMA, FMUL, FADD and those on two halves of a register, "fma2" the forms that do two float32 operations of a
thread at once, "integer" also selects, permuted bytes and moves, "uniform" what is done once for a warp."""

COMPUTES = {"matrix", "mufu", "fma", "fma2", "minmax", "tensor_memory"}
"""Kinds of which an inner loop that computes has at least one."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_LINE = re.compile(
    r"^(?P<label>[.$\w]+):|^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>\S+)\s+)?(?P<name>[A-Z]\w*)"
    r"(?P<rest>[^;]*)",
    re.MULTILINE,
)
_TARGET = re.compile(r"`\(([.$\w]+)\)")


@dataclasses.dataclass(frozen=True)
class Loop:
    """An inner loop.

    Attributes:
      instructions: that a thread issues in a trip.
      kinds: kind -> how many of them, of `KINDS` and "other", those that occur.
      shortest: the same of the trip with fewest instructions: where a tile needs no mask, without it.
      around: the same of a trip of the loop around this one, outside of all inner loops: what a stationary tile takes
        besides the tiles that stream past it. Empty where there is no such loop.
    """

    instructions: int
    kinds: dict[str, int]
    shortest: dict[str, int] = dataclasses.field(default_factory=dict)
    around: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Block:
    """Instructions that run one after the other: their names, whether a wait is among them, and where they lead."""

    names: list[str]
    waits: bool = False
    falls_through: bool = True
    targets: list[str] = dataclasses.field(default_factory=list)


def kind_of(name: str) -> str:
    """The kind of an instruction by its name without modifiers, such as "FFMA2"."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(name)), "other")


def _blocks(function: str) -> tuple[list[_Block], dict[str, int]]:
    """The basic blocks in order, and which of them a label names.

    Raises:
      ValueError: a branch goes to where only a register says.
    """
    blocks, labels = [_Block([])], {}
    for line in _LINE.finditer(function):
        if label := line["label"]:
            if blocks[-1].names:
                blocks.append(_Block([]))
            labels[label] = len(blocks) - 1
            continue
        name, rest, block = line["name"], line["rest"], blocks[-1]
        block.names.append(name)
        block.waits |= name == "SYNCS" and rest.startswith(".PHASECHK")
        if name in ("BRX", "JMX", "JMP", "BRXU", "JMXU"):
            raise ValueError(f"SASS: {name} at {line['address']} has no target that the text names")
        if name not in ("BRA", "EXIT", "RET"):
            continue
        if name == "BRA" and (target := _TARGET.search(rest)):
            block.targets.append(target[1])
        # A condition stands before the name, or, of a uniform branch, before the target.
        block.falls_through = bool(line["predicate"]) or (name == "BRA" and not rest.strip().startswith("`"))
        blocks.append(_Block([]))
    return blocks, labels


def _edges(blocks: list[_Block], labels: Mapping[str, int]) -> list[list[int]]:
    """Block -> the blocks that may run next.

    Raises:
      ValueError: a branch goes to a label that is not there.
    """
    missing = sorted({target for block in blocks for target in block.targets} - set(labels))
    if missing:
        raise ValueError(f"SASS: a branch goes to {missing[0]}, which the function does not have")
    return [
        [labels[target] for target in block.targets] + ([i + 1] if block.falls_through and i + 1 < len(blocks) else [])
        for i, block in enumerate(blocks)
    ]


def _order(edges: list[list[int]]) -> list[int]:
    """The blocks that run, each before those it leads to, but for back edges."""
    order, seen, stack = [], {0}, [(0, iter(edges[0]))]
    while stack:
        following = stack[-1][1]
        successor = next((s for s in following if s not in seen), None)
        if successor is None:
            order.append(stack.pop()[0])
        else:
            seen.add(successor)
            stack.append((successor, iter(edges[successor])))
    return order[::-1]


def _natural_loops(order: list[int], edges: list[list[int]]) -> dict[int, set[int]]:
    """Header -> the blocks of its loop: those between it and a branch back to it that it dominates."""
    before = collections.defaultdict(list)
    for block in order:
        for successor in edges[block]:
            before[successor].append(block)
    dominators = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(dominators[b] for b in before[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    loops: dict[int, set[int]] = {}
    for block in order:
        for header in set(edges[block]) & dominators[block]:
            loop = loops.setdefault(header, {header})
            stack = [block]
            while stack:
                if (member := stack.pop()) not in loop:
                    loop.add(member)
                    stack += before[member]
    return loops


def _trip(
    header: int,
    members: set[int],
    counted: Mapping[int, int],
    order: list[int],
    edges: list[list[int]],
    sign: Literal[1, -1] = 1,
) -> list[int]:
    """The blocks on the way from a loop's header back to it that has most instructions.

    Args:
      header: where the loop begins.
      members: its blocks.
      counted: block -> instructions that count, 0 if it only waits.
      order: see `_order`; an edge against it closes a loop and is not on a way.
      edges: see `_edges`.
      sign: -1 for the way that has fewest.
    """
    place = {block: i for i, block in enumerate(order)}
    best, previous = {header: sign * counted[header]}, {}
    for block in sorted(members, key=place.__getitem__):
        for successor in edges[block]:
            if successor not in members or place[successor] <= place[block]:
                continue
            length = best[block] + sign * counted[successor]
            if length > best.get(successor, -math.inf):
                best[successor], previous[successor] = length, block
    block = max((block for block in members if header in edges[block]), key=best.__getitem__)
    way = [block]
    while block != header:
        block = previous[block]
        way.append(block)
    return way


def _only_waits(blocks: list[_Block], members: set[int]) -> bool:
    kinds = {kind_of(name) for i in members for name in blocks[i].names}
    return any(blocks[i].waits for i in members) and kinds <= {"barrier", "control", "integer", "uniform", "other"}


def inner_loops(text: str) -> tuple[Loop, ...]:
    """The inner loops of a disassembly that compute, see `COMPUTES`.

    Args:
      text: what nvdisasm prints of one kernel, other lines among them.

    Raises:
      ValueError: there is no instruction in it, or a branch that cannot be followed.

    Returns:
      in the order of the text.
    """
    functions = [part for part in re.split(r"(?m)^\s*\.section\s+\.text\b", text)[1:] if _LINE.search(part)]
    if not functions:
        raise ValueError("no disassembly in the compiler's output: nvdisasm must lie beside ptxas")
    return tuple(loop for function in functions for loop in _inner_loops(function))


def _inner_loops(function: str) -> Iterator[Loop]:
    blocks, labels = _blocks(function)
    edges = _edges(blocks, labels)
    order = _order(edges)
    every = _natural_loops(order, edges)
    loops = {header: members for header, members in every.items() if not _only_waits(blocks, members)}
    waiting = set().union(*(every[header] for header in every.keys() - loops.keys()))
    counted = {i: 0 if i in waiting else len(block.names) for i, block in enumerate(blocks)}

    def trip(header: int, counted: Mapping[int, int], sign: Literal[1, -1] = 1) -> dict[str, int]:
        way = _trip(header, loops[header], counted, order, edges, sign)
        kinds = collections.Counter(kind_of(name) for i in way if counted[i] for name in blocks[i].names)
        return dict(sorted(kinds.items()))

    def around(header: int) -> dict[str, int]:
        outer = [h for h in loops if h != header and header in loops[h]]
        if not outer:
            return {}
        closest = min(outer, key=lambda h: len(loops[h]))
        inside = set().union(*(loops[h] for h in loops.keys() & loops[closest] - {closest}))
        return trip(closest, {i: 0 if i in inside else number for i, number in counted.items()})

    for header, members in sorted(loops.items()):
        if loops.keys() & members - {header}:
            continue
        kinds = trip(header, counted)
        if kinds.keys() & COMPUTES:
            yield Loop(sum(kinds.values()), kinds, trip(header, counted, -1), around(header))


def compute_loop(loops: Sequence[Loop]) -> Loop | None:
    """The loop with the score function: the one with most MUFU and FMA; None if no loop has any.

    Norms, which other loops of a kernel may hold, take no MUFU for each number: a loop with MUFU comes first.
    """

    def work(loop: Loop) -> tuple[bool, int]:
        number = sum(loop.kinds.get(kind, 0) for kind in ("mufu", "fma", "fma2"))
        return loop.kinds.get("mufu", 0) > 0, number

    found = max(loops, key=work, default=None)
    return found if found and any(work(found)) else None
