"""What one chip sends to the others, and the matrix products it computes, in a compiled program.

    kind                 payload P                      bytes a chip sends in a ring of g
    all-gather           the gathered array             P (g - 1) / g
    reduce-scatter       the array before it            P (g - 1) / g
    all-reduce           the array                      2 P (g - 1) / g
    all-to-all           the array                      P (g - 1) / g
    collective-permute   the array                      P

Not derivable from the text: how much of it is hidden behind arithmetic, the links' speed, and
transfers that a library call makes by itself.
"""

import math
import re
from typing import NamedTuple

from train.preflight import hlo

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
# TPU: a reduce-scatter is a fusion of this name round an all-reduce.
SCATTERED = 'all-reduce-scatter'
# TPU: a collective that overlaps with others' work appears once in each piece, as one chain.
CHAIN = re.compile(r'chain_id="(\d+)"')
PALLAS = 'custom_call_target="tpu_custom_call"'
LISTED = re.compile(r'replica_groups=\{\{([\d,]*)\}')
IOTA = re.compile(r'replica_groups=\[(\d+),(\d+)\]<=')
MESHED = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')


class Collective(NamedTuple):
    """One collective: its kind, payload and ring bytes of one run, ring size, number of runs."""

    kind: str
    arrays: tuple[hlo.Array, ...]
    payload: int
    sent: float
    group: int
    times: int


def collectives(visits: list[hlo.Visit]) -> list[Collective]:
    """The collectives of a program that has more than one participant each."""
    found, chains = [], set()
    for visit in visits:
        opcode = visit.op.opcode.removesuffix('-start')
        if opcode not in KINDS:
            continue
        chain = CHAIN.search(visit.op.rest)
        if chain is not None:
            key = (opcode, chain[1], visit.op.arrays, visit.times)
            if key in chains:
                continue
            chains.add(key)
        one = _collective(opcode, visit)
        if one.group > 1:
            found.append(one)
    return found


def _collective(opcode: str, visit: hlo.Visit) -> Collective:
    operands = _operands(visit)
    payload, group = sum(map(hlo.size, operands)), group_size(visit.op.rest)
    kind = opcode
    if opcode == 'all-reduce' and visit.within.name.startswith(SCATTERED):
        kind = 'reduce-scatter'
    if kind == 'all-gather':
        payload *= group
    if kind == 'collective-permute':
        return Collective(kind, operands, payload, payload, 2, visit.times)
    rounds = 2 if kind == 'all-reduce' else 1
    sent = rounds * payload * (group - 1) / group
    return Collective(kind, operands, payload, sent, group, visit.times)


def _operands(visit: hlo.Visit) -> tuple[hlo.Array, ...]:
    return tuple(array for name in visit.op.operands for array in visit.within.ops[name].arrays)


def group_size(rest: str) -> int:
    """Participants of one group, in any of XLA's three ways to write them.

    Example:
      >>> group_size('replica_groups={{0,1},{2,3}}'), group_size('replica_groups=[2,4]<=[8]')
      (2, 4)
      >>> group_size("replica_groups=mesh['x'=4,'y'=2] {'x'}")
      4
    """
    if found := IOTA.search(rest):
        return int(found[2])
    if found := LISTED.search(rest):
        return len([n for n in found[1].split(',') if n])
    if found := MESHED.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    return 1


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Runs, payload and ring bytes of each kind, over a whole update, for one chip."""
    table = {}
    for kind in KINDS:
        mine = [c for c in found if c.kind == kind]
        if mine:
            table[kind] = {
                'runs': sum(c.times for c in mine),
                'payload': sum(c.payload * c.times for c in mine),
                'sent': sum(c.sent * c.times for c in mine),
            }
    return table


def matmul_flops(visits: list[hlo.Visit]) -> int:
    """FLOPs of one chip's matrix products: `dot`, and the convolutions that a TPU makes of them.

    Not seen: products inside a library call (oneDNN on a CPU, cuBLAS on a GPU) or a Pallas kernel.
    """
    total = 0
    for visit in visits:
        if visit.op.opcode == 'dot':
            total += visit.times * _dot(visit)
        elif visit.op.opcode == 'convolution':
            total += visit.times * _convolution(visit)
    return total


def kernel_runs(visits: list[hlo.Visit]) -> int:
    """How often a chip runs a Pallas kernel in an update, every branch of a choice counted."""
    called = (v for v in visits if v.op.opcode == 'custom-call' and PALLAS in v.op.rest)
    return sum(visit.times for visit in called)


def _numbers(text: str, name: str) -> list[int]:
    found = re.search(rf'{name}=\{{([\d,]*)\}}', text)
    return [int(n) for n in found[1].split(',') if n] if found else []


def _dot(visit: hlo.Visit) -> int:
    """`2 |out| |contracted|`."""
    left = _operands(visit)[0][1]
    contracted = [left[axis] for axis in _numbers(visit.op.rest, 'lhs_contracting_dims')]
    return 2 * math.prod(visit.op.arrays[0][1]) * math.prod(contracted)


def _convolution(visit: hlo.Visit) -> int:
    """`2 |out| |input features| |window|`; a dilated window axis is a batch axis in disguise.

    With `lhs_dilate=16` over 16 matrices each output meets one of them, the rest being holes.
    """
    labels = re.search(r'dim_labels=\w+_(\w+)->', visit.op.rest)
    assert labels is not None, f'convolution {visit.op.name} has no dim_labels'
    kernel = _operands(visit)[1][1]
    features = kernel[labels[1].index('i')]
    window = _window(visit.op.rest, 'size')
    dilated = _window(visit.op.rest, 'lhs_dilate') or [1] * len(window)
    taps = [n if d == 1 else 1 for n, d in zip(window, dilated, strict=True)]
    return 2 * math.prod(visit.op.arrays[0][1]) * features * math.prod(taps)


def _window(rest: str, name: str) -> list[int]:
    found = re.search(rf'window=\{{[^}}]*\b{name}=([\dx]+)', rest)
    return [int(n) for n in found[1].split('x')] if found else []
