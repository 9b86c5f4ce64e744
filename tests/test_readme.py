"""README is true: its snippets run and print what it says, its commands and files exist."""

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import re
import shlex
import tomllib
from typing import NamedTuple

import pytest

import jaxpeft as jp
from eval.compare import entries
from train import cli
from train import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SCREEN = 45  # lines that a reader sees before scrolling


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on."""

    language: str
    text: str
    line: int


def blocks():
    fence = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
    found = fence.finditer(README)
    return [Block(m[1], m[2], README.count('\n', 0, m.start(2)) + 1) for m in found]


BLOCKS = blocks()


def commands():
    """Each command of the shell blocks as a list of words, continued lines joined."""
    shells = [b.text.replace('\\\n', ' ') for b in BLOCKS if b.language in ('bash', 'sh')]
    lines = [part for text in shells for line in text.splitlines() for part in line.split('&&')]
    return [shlex.split(line) for line in lines if line.strip()]


def test_snippets_run_in_order_and_print_what_is_shown(tmp_path, monkeypatch):
    """In one namespace, as a reader would paste them; a `text` block after one is its output."""
    monkeypatch.chdir(tmp_path)
    namespace = {'__name__': 'readme'}
    ran = 0
    for block, following in zip(BLOCKS, [*BLOCKS[1:], Block('', '', 0)], strict=True):
        if block.language != 'python':
            continue
        # Blank lines in front make a traceback name README's own line.
        code = compile('\n' * (block.line - 1) + block.text, str(ROOT / 'README.md'), 'exec')
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        shown = following.text if following.language == 'text' else ''
        assert printed.getvalue() == shown, f'README line {block.line}'
        ran += 1
    assert ran >= 6


def test_the_first_screen_has_the_two_commands():
    """`.ci/run` runs the first two bash blocks as they stand."""
    first, second = [b for b in BLOCKS if b.language == 'bash'][:2]
    assert second.line < SCREEN
    assert first.text.strip() == 'pip install -e . && python -m train.run --method knowhira'
    assert second.text.strip() == "pip install -e '.[test]' && pytest"


@pytest.mark.parametrize('words', commands(), ids=' '.join)
def test_commands_exist(words):
    """Programs, flags, presets and values, as the programs themselves read them."""
    if words[:2] == ['pip', 'install']:
        extras = re.findall(r'\[(.*)\]', words[-1])
        assert set(extras) <= set(PROJECT['project']['optional-dependencies'])
    elif words[0] != 'pytest':
        assert words[:2] == ['python', '-m']
        check_program(words[2], words[3:])


def check_program(module, argv):
    assert importlib.util.find_spec(module), f'there is no {module}'
    if module == 'train.run':
        cli.parse(argv)
    elif module == 'eval.compare':  # hands what is not its own on to train.run
        args, rest = importlib.import_module('eval.compare.__main__').parse(argv)
        for entry in entries.parse(args.methods, args.seeds, args.seeds_of, args.lrs, args.lrs_of):
            if entry.method != entries.BASE:
                cli.parse([*rest, f'--method={entry.method}', *entry.flags])
    elif module.startswith('eval.'):
        from eval import cli as eval_cli

        program = importlib.import_module(module)
        eval_cli.parse(program.Args, argv, module, program.DESCRIPTION)


OTHERS = (  # the other programs; each says its flags in a dataclass
    'eval.perplexity', 'eval.retrieval.__main__', 'eval.compare.__main__', 'eval.structures',
    'train.tune.__main__', 'train.sweep.__main__', 'train.download', 'eval.harness',
)  # fmt: skip


def test_flags_files_and_names_exist():
    """Whatever README sets in `code` and looks like a flag or a path of the repository."""
    programs = [importlib.import_module(f'eval.{name}').Args for name in ('run', 'generate')]
    programs.append(importlib.import_module('train.preflight.__main__').Options)
    for module in OTHERS:
        found = vars(importlib.import_module(module)).values()
        own = [v for v in found if dataclasses.is_dataclass(v) and isinstance(v, type)]
        programs += [v for v in own if v.__module__ == module]
    known = set(configs.flags()) | {f.name for args in programs for f in dataclasses.fields(args)}
    known |= set(vars(importlib.import_module('eval.bench.__main__').parser().parse_args([])))
    text = re.sub(r'^```.*?^```$', '', README, flags=re.M | re.S)
    code = ' '.join(re.findall(r'`([^`\n]+)`', text))
    flags = {flag.replace('-', '_') for flag in re.findall(r'--([a-z][a-z_-]*)', code)}
    assert len(flags) > 20
    switches = {
        f'no_{f.name}' for f in dataclasses.fields(configs.Data) if f.type in (bool, 'bool')
    }
    assert flags - {'help'} <= known | switches
    for path in re.findall(r'\b((?:jaxpeft|train|eval|tests)/[\w./]*)', code):
        assert (ROOT / path).exists() or path.isupper() or 'NAME' in path, path
    for name in re.findall(r'\bjp\.([a-z_]+(?:\.[a-z_]+)?)', README):
        value = jp
        for part in name.split('.'):
            value = getattr(value, part)


def test_every_method_is_described():
    for name in jp.methods.names():
        assert f'`{name}`' in README


def test_the_version_is_one():
    assert PROJECT['project']['version'] == jp.__version__
    assert f'## {jp.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
