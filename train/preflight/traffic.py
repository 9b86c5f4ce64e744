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
EVERYONE = 'replica_groups={}'
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


def collectives(visits: list[hlo.Visit], chips: int) -> list[Collective]:
    """The collectives of a program that have more than one participant each, of `chips` in all."""
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
        one = _collective(opcode, visit, chips)
        if one.group > 1:
            found.append(one)
    return found


def _collective(opcode: str, visit: hlo.Visit, chips: int) -> Collective:
    operands = _operands(visit)
    payload, group = sum(map(hlo.size, operands)), group_size(visit.op.rest, chips)
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


def group_size(rest: str, chips: int) -> int:
    """Participants of one group, in any of XLA's four ways to write them; 1 where it says none.

    Example:
      >>> group_size('replica_groups={{0,1},{2,3}}', 4), group_size('replica_groups=[2,4]<=[8]', 8)
      (2, 4)
      >>> group_size("replica_groups=mesh['x'=4,'y'=2] {'x'}", 8)
      4
      >>> group_size('replica_groups={}', 8)
      8
    """
    if found := IOTA.search(rest):
        return int(found[2])
    if found := LISTED.search(rest):
        return len([n for n in found[1].split(',') if n])
    if found := MESHED.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    return chips if EVERYONE in rest else 1


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
    """`2 |out| |input features|` times the taps of the window that meet a number.

    A TPU makes window axes of batches: of 16 matrices dilated by 16 each output meets one, and of
    one matrix padded to both sides too; the others are holes.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', visit.op.rest)
    assert labels is not None, f'convolution {visit.op.name} has no dim_labels'
    left, kernel = (operand[1] for operand in _operands(visit)[:2])
    out = visit.op.arrays[0][1]
    flops = 2 * kernel[labels[2].index('i')]
    flops *= math.prod(n for n, axis in zip(out, labels[3], strict=True) if not axis.isdigit())
    window = _window(visit.op.rest)
    for axis in range(sum(c.isdigit() for c in labels[3])):
        name = str(axis)
        sizes = left[labels[1].index(name)], out[labels[3].index(name)]
        flops *= met(*sizes, *(window[key][axis] if key in window else n for key, n in WINDOW))
    return flops


WINDOW = (('size', 1), ('stride', 1), ('pad', 0), ('lhs_dilate', 1), ('rhs_dilate', 1))


def met(given: int, out: int, size: int, stride: int, pad: int, dilate: int, spread: int) -> int:
    """Pairs of an output and a tap of the window that meet a number, along one axis.

    Args:
      given, out: lengths of the input and of the output.
      size, stride, pad: the window's taps, its steps, and the zeros in front of the input.
      dilate, spread: distance of the input's numbers among zeros, and of the window's taps.

    Example:
      >>> met(1, 2, size=2, stride=1, pad=1, dilate=1, spread=1)  # one matrix, two outputs
      2
    """
    places = (o * stride + t * spread - pad for o in range(out) for t in range(size))
    return sum(p % dilate == 0 and 0 <= p <= (given - 1) * dilate for p in places)


def _window(rest: str) -> dict[str, list[int]]:
    """`window={size=2x3 pad=1_1x0_0}` -> {'size': [2, 3], 'pad': [1, 0]}; of pads the first."""
    found = re.search(r'window=\{([^}]*)\}', rest)
    parts = (part.split('=') for part in found[1].split()) if found else ()
    return {name: [int(n.split('_')[0]) for n in text.split('x')] for name, text in parts}
