"""A compiled program's text: its operations, and how many times each one runs.

XLA's own cost analysis counts the body of a loop once. Here the walk starts at ENTRY, follows
fusions, calls and branches, and multiplies by the trip count of every `while`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
    'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
    's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16,
}  # fmt: skip
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
# A line of its own. A kernel's metadata has line breaks, and may go on with `}}, metadata=..`.
CLOSED = re.compile(r'^\}(, execution_thread=.*)?$')
NAME = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
CALLED = re.compile(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)')
BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
FOLLOWED = ('fusion', 'call', 'conditional', 'async-start')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

Array = tuple[str, tuple[int, ...]]  # dtype, dimensions


class Op(NamedTuple):
    """One line of a computation: its name, opcode, result arrays, operands' names, the rest."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str


class Computation(NamedTuple):
    """A named list of operations, by name, the last one its root."""

    name: str
    ops: dict[str, Op]


class Module(NamedTuple):
    """A program: its computations by name, and the one where it starts."""

    computations: dict[str, Computation]
    entry: str


class Visit(NamedTuple):
    """An operation in its computation, and how many times an execution of the program runs it."""

    op: Op
    within: Computation
    times: int


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: for text without an ENTRY computation.
    """
    computations: dict[str, Computation] = {}
    entry, here = '', None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            here = computations[header[2]] = Computation(header[2], {})
            entry = header[2] if header[1] else entry
        elif CLOSED.match(line):
            here = None
        elif here is not None and (found := NAME.match(line)):
            here.ops[found[2]] = _op(found[2], found[3])
    if not entry:
        raise ValueError('this is no text of a compiled program: it has no ENTRY computation')
    return Module(computations, entry)


def _op(name: str, text: str) -> Op:
    """`TYPE opcode(operands), rest`, where TYPE may be a tuple with layouts of its own."""
    end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
    opening = text.index('(', end)
    closing = _closing(text, opening)
    operands = re.findall(r'%([\w.\-]+)', text[opening:closing])
    rest = text[closing + 1 :]
    if text[end:opening].strip() in ('constant', 'parameter'):
        operands, rest = [text[opening + 1 : closing]], ''
    return Op(name, text[end:opening].strip(), arrays(text[:end]), tuple(operands), rest)


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == '(') - (text[i] == ')')
        if depth == 0:
            return i
    raise ValueError(f'unbalanced brackets in {text[:80]!r}')


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type: `(f32[2,3]{1,0}, s32[])` -> ('f32', (2, 3)), ('s32', ()).

    Example:
      >>> arrays('(f32[2,3]{1,0:T(8,128)}, s32[])')
      (('f32', (2, 3)), ('s32', ()))
    """
    return tuple(
        (kind, tuple(int(n) for n in dims.split(',') if n))
        for kind, dims in ARRAY.findall(text)
        if kind in BYTES or kind.startswith('f8')
    )


def size(array: Array) -> int:
    """Bytes of an array."""
    kind, dims = array
    count = 1
    for n in dims:
        count *= n
    return count * BYTES.get(kind, 1)


def walk(module: Module) -> tuple[list[Visit], list[str]]:
    """Every operation with the number of its runs, and the loops whose trips nobody can tell.

    The body of such a loop is counted once.
    """
    unknown: list[str] = []
    return list(_visits(module, module.computations[module.entry], 1, unknown)), unknown


def _visits(module: Module, here: Computation, times: int, unknown: list[str]) -> Iterator[Visit]:
    for op in here.ops.values():
        yield Visit(op, here, times)
        if op.opcode == 'while':
            count = trips(module, here, op)
            if count is None:
                unknown.append(op.name)
            body = module.computations[_attribute(op, 'body')]
            yield from _visits(module, body, times * (1 if count is None else count), unknown)
        elif op.opcode in FOLLOWED:
            for name in _called(op):
                yield from _visits(module, module.computations[name], times, unknown)


def _called(op: Op) -> list[str]:
    branches = BRANCHES.search(op.rest)
    listed = re.findall(r'%?([\w.\-]+)', branches[1]) if branches else []
    return listed + CALLED.findall(op.rest)


def _attribute(op: Op, name: str) -> str:
    found = re.search(rf'{name}=%?([\w.\-]+)', op.rest)
    assert found is not None, f'{op.opcode} {op.name} has no {name}'
    return found[1]


def trips(module: Module, here: Computation, op: Op) -> int | None:
    """Iterations of a `while`: XLA's own note, or `i < constant` with i counting from a constant.

    None where neither is there. A scan of JAX always has the second form, with steps of 1; the
    rings of a product that overlaps with its own transfers take 2.
    """
    noted = TRIPS.search(op.rest)
    if noted:
        return int(noted[1])
    condition = module.computations[_attribute(op, 'condition')]
    root = list(condition.ops.values())[-1]
    ends = [_constant(condition, name) for name in root.operands]
    if root.opcode != 'compare' or 'direction=LT' not in root.rest or len(ends) != 2:
        return None
    counter = condition.ops.get(root.operands[0])
    if ends[1] is None or counter is None or counter.opcode != 'get-tuple-element':
        return None
    place = int(_attribute(counter, 'index'))
    first = here.ops.get(op.operands[0])
    known = first is not None and first.opcode == 'tuple' and len(first.operands) > place
    start = _constant(here, first.operands[place]) if known and first is not None else None
    step = _step(module.computations[_attribute(op, 'body')], place)
    return None if step is None else -(-(ends[1] - (start or 0)) // step)


def _step(body: Computation, place: int) -> int | None:
    """What a loop's body adds to the counter in this place of its tuple; None where it is not told.

    A body whose root is no tuple, or whose counter a fusion computes, is taken to count by 1.
    """
    root = list(body.ops.values())[-1]
    added = body.ops.get(root.operands[place]) if root.opcode == 'tuple' else None
    while added is not None and added.opcode in ('copy', 'bitcast'):
        added = body.ops.get(added.operands[0])
    if added is None or added.opcode != 'add':
        return 1
    steps = [n for n in (_constant(body, name) for name in added.operands) if n is not None]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else None


def _constant(here: Computation, name: str) -> int | None:
    """The value of an integer constant, seen through copies."""
    op = here.ops.get(name)
    while op is not None and op.opcode in ('copy', 'bitcast', 'copy-start', 'copy-done'):
        op = here.ops.get(op.operands[0])
    if op is None or op.opcode != 'constant' or not re.fullmatch(r'-?\d+', op.operands[0]):
        return None
    return int(op.operands[0])
