"""Features of Python source from its syntax tree: for text that lies wholly in the prompt.

A tree of the whole source knows what comes later: whether a bracket is ever closed, or that a line
opens a `try`. In language modelling take `jaxpeft.structure.tokens`, which reads prefixes.
"""

import ast
import re
import tokenize
from collections.abc import Sequence

import numpy as np

NODES = (
    'Module', 'FunctionDef', 'AsyncFunctionDef', 'ClassDef', 'Return', 'Delete', 'Assign',
    'TypeAlias', 'AugAssign', 'AnnAssign', 'For', 'AsyncFor', 'While', 'If', 'With', 'AsyncWith',
    'Match', 'Raise', 'Try', 'TryStar', 'Assert', 'Import', 'ImportFrom', 'Global', 'Nonlocal',
    'Expr', 'Pass', 'Break', 'Continue', 'BoolOp', 'NamedExpr', 'BinOp', 'UnaryOp', 'Lambda',
    'IfExp', 'Dict', 'Set', 'ListComp', 'SetComp', 'DictComp', 'GeneratorExp', 'Await', 'Yield',
    'YieldFrom', 'Compare', 'Call', 'FormattedValue', 'JoinedStr', 'Constant', 'Attribute',
    'Subscript', 'Starred', 'Name', 'List', 'Tuple', 'Slice', 'ExceptHandler', 'arg', 'keyword',
    'alias', 'MatchValue', 'MatchSingleton', 'MatchSequence', 'MatchMapping', 'MatchClass',
    'MatchStar', 'MatchAs', 'MatchOr', 'TypeVar', 'ParamSpec', 'TypeVarTuple', 'TemplateStr',
    'Interpolation',
)  # fmt: skip
# A list of our own and not `ast`'s: an adapter's table must mean the same under every Python.
NODE_ID = {name: number for number, name in enumerate(NODES, start=1)}
# Formatted strings are leaves: before Python 3.12 neither tokens nor nodes look into them.
FORMATTED = ('JoinedStr', 'TemplateStr')
STRING_BEGINS, STRING_ENDS = (
    [getattr(tokenize, f'{kind}STRING_{side}', -1) for kind in 'FT'] for side in ('START', 'END')
)
LINE = re.compile(r'[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z')


def code_features(source: str, spans: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Indentation, brackets and syntax tree at each token: features of the kind 'code'.

    Columns of `ids`: levels of indentation (blocks, not spaces); depth of brackets, a pair itself
    belongs to its inside; 1 + the number in `NODES` of the innermost node; that node's depth, 0 for
    the module. A token's are those of its first character that is no blank. A character outside of
    all nodes (a comment) has the ids 0, 0 of the tree.

    Args:
      source: a whole Python program.
      spans: T pairs (start, end) of characters, `tokenizer(source, return_offsets_mapping=True)
        ['offset_mapping']`. An empty span (a special token) gets zeros.

    Returns:
      `positions [T]` int32 and `ids [T, 4]` int32. Stack rows to [B, T].

    Raises:
      ValueError: for source that this Python cannot parse, with the line; for a span outside it.

    Example:
      >>> found = code_features('if x:\\n    f([1])', [(0, 2), (10, 11), (13, 14)])
      >>> [(row[0], row[1], NODES[row[2] - 1], row[3]) for row in found['ids'].tolist()]
      [(0, 0, 'If', 1), (1, 0, 'Name', 4), (1, 2, 'Constant', 5)]
    """
    per_character = character_ids(source)
    ids = np.zeros((len(spans), per_character.shape[1]), np.int32)
    for number, (start, end) in enumerate(spans):
        if not 0 <= start <= end <= len(source):
            raise ValueError(f'span {number} = ({start}, {end}) is outside of the source')
        if start < end:
            text = source[start:end]
            ids[number] = per_character[start + (len(text) - len(text.lstrip())) % len(text)]
    return {'positions': np.arange(len(spans), dtype=np.int32), 'ids': ids}


def character_ids(source: str) -> np.ndarray:
    """The four ids of every character, `[len(source), 4]` int32; see `code_features`."""
    lines = LINE.findall(source)
    starts = np.cumsum([0, *map(len, lines)])
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(
            f'not a Python program: {error.msg} in line {error.lineno}; for text that is not '
            'wholly code, or cut off, use jaxpeft.structure.token_features'
        ) from error
    ids = np.zeros((len(source), 4), np.int32)
    _paint_layout(ids, lines, starts)
    _paint_nodes(ids, tree, lines, starts)
    return ids


def _paint_layout(ids: np.ndarray, lines: list[str], starts: np.ndarray) -> None:
    """Columns 0 and 1: each token's levels hold until the next one changes them."""
    level = depth = strings = 0
    changes = [(0, 0, 0)]
    for token in tokenize.generate_tokens(iter([*lines, '']).__next__):
        start, end = (int(starts[min(row - 1, len(lines))]) + col for row, col in (token[2:4]))
        level += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        strings += (token.type in STRING_BEGINS) - (token.type in STRING_ENDS)
        bracket = token.string if token.type == tokenize.OP and not strings else ' '
        depth += bracket in '([{'
        changes.append((start, level, depth))
        if bracket in ')]}':
            depth -= 1
            changes.append((end, level, depth))
    at, levels, depths = np.array(changes).T
    last = np.searchsorted(at, np.arange(len(ids)), side='right') - 1
    ids[:, 0], ids[:, 1] = levels[last], depths[last]


def _paint_nodes(ids: np.ndarray, tree: ast.AST, lines: list[str], starts: np.ndarray) -> None:
    """Columns 2 and 3: parents first, so that the innermost node is what stays."""

    def offset(row: int, column: int) -> int:
        # ast counts bytes of UTF-8.
        return int(starts[row - 1]) + len(lines[row - 1].encode()[:column].decode())

    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        row, end = getattr(node, 'lineno', None), getattr(node, 'end_lineno', None)
        if row is not None and end is not None:
            inside = slice(
                offset(row, node.col_offset),  # type: ignore[attr-defined]
                offset(end, node.end_col_offset),  # type: ignore[attr-defined]
            )
            ids[inside, 2] = NODE_ID.get(type(node).__name__, 0)
            ids[inside, 3] = depth
        if type(node).__name__ not in FORMATTED:
            waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
