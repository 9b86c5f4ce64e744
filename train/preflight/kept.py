"""The arrays that a loop over the layers keeps for the backward pass: most of the temporaries."""

from collections import Counter
from typing import NamedTuple

from train.preflight import hlo


class Kept(NamedTuple):
    """Arrays of one type that the layer loop stacks: their number, and bytes of all of them."""

    array: hlo.Array
    number: int
    bytes: int


def stacked(module: hlo.Module, visits: list[hlo.Visit], shown: int = 5) -> list[Kept]:
    """The largest of the arrays stacked by the loop that stacks most, arguments left out.

    An array is stacked where its first axis is as long as the loop runs. An argument of the program
    (a kernel, its adapter) is told by its type, so an activation of the very same type is missed.
    """
    entry = module.computations[module.entry]
    given = {a for op in entry.ops.values() if op.opcode == 'parameter' for a in op.arrays}
    best: list[Kept] = []
    for visit in visits:
        if visit.op.opcode != 'while':
            continue
        length = hlo.trips(module, visit.within, visit.op)
        found = Counter(
            a for a in visit.op.arrays if len(a[1]) > 1 and a[1][0] == length and a not in given
        )
        here = [Kept(array, n, n * hlo.size(array)) for array, n in found.items()]
        if sum(k.bytes for k in here) > sum(k.bytes for k in best):
            best = here
    return sorted(best, key=lambda kept: -kept.bytes)[:shown]
