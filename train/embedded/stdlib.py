"""Plain text that every machine has: doc strings and sources of Python's own library."""

import ast
import pathlib
import random
import sysconfig
from collections.abc import Iterator

PIECE = 900  # characters; about one training row of 256 tokens


def documents(seed: int, characters: int) -> list[str]:
    """Returns pieces of the standard library's text, shuffled, about `characters` in all.

    Two thirds are doc strings, one third is source code. What comes depends on
    the interpreter's version only (the model card names it).
    """
    rng = random.Random(seed)
    files = _files()
    rng.shuffle(files)
    prose: list[str] = []
    code: list[str] = []
    for path in files:
        if sum(map(len, prose)) > characters * 2 // 3 and sum(map(len, code)) > characters // 3:
            break
        source = _read(path)
        if len(source) > 200 and source.isascii():
            prose += _pieces('\n\n'.join(_doc_strings(source)))
            code += _pieces(source)
    rng.shuffle(code)
    chosen = _take(prose, characters * 2 // 3) + _take(code, characters // 3)
    rng.shuffle(chosen)
    return chosen


def sources() -> Iterator[tuple[str, str]]:
    """Yields (path below the library, text) of the interpreter's own library, sorted by path.

    Without site-packages, tests and idlelib, and without what is too short or not ASCII.
    """
    for path in _files():
        source = _read(path)
        if len(source) > 200 and source.isascii():
            yield path.relative_to(_root()).as_posix(), source


def _root() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path('stdlib'))


def _files() -> list[pathlib.Path]:
    root = _root()
    files = sorted(root.glob('*.py')) + sorted(root.glob('[a-z]*/*.py'))
    return [each for each in files if not {'site-packages', 'test', 'idlelib'} & set(each.parts)]


def _read(path: pathlib.Path) -> str:
    return path.read_bytes().decode('utf-8', 'replace').replace('\r\n', '\n')


def _doc_strings(source: str) -> list[str]:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(source))
             if isinstance(node, nodes))  # fmt: skip
    return [text for text in found if text]


def _pieces(text: str) -> list[str]:
    """Cuts at line ends into pieces of about `PIECE` characters."""
    pieces, piece = [], ''
    for line in text.splitlines(keepends=True):
        if len(piece) + len(line) > PIECE and piece:
            pieces.append(piece)
            piece = ''
        piece += line
    return [*pieces, piece] if piece.strip() else pieces


def _take(pieces: list[str], characters: int) -> list[str]:
    taken, total = [], 0
    for piece in pieces:
        if total >= characters:
            break
        taken.append(piece)
        total += len(piece)
    return taken
