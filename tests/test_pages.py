"""Huge pages for our programs: who asks, who does not, and that it is the same process after."""

import os
import subprocess
import sys

import pytest

from eval.bench.rows import Subject
from train import pages

PROGRAM = """
import os, sys
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:])
"""


@pytest.fixture
def program(tmp_path):
    """Runs `python ARGS` beside a package that asks: what its program printed after its pid."""
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('from train import pages\npages.ask()\n')
    (package / 'program.py').write_text(PROGRAM)
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])

    def run(*command, tunables=None):
        environment = {k: v for k, v in os.environ.items() if k != pages.VARIABLE}
        environment |= {'PYTHONPATH': paths} | ({pages.VARIABLE: tunables} if tunables else {})
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        pid, *rest = out.split()
        assert int(pid) == process.pid
        return rest

    return run


def test_a_program_asks_and_goes_on_as_the_same_process(program):
    """Where the kernel gives huge pages for the asking; elsewhere the variable stays unset."""
    expected = f'{pages.TUNABLE}=1' if pages._grants() else 'None'
    assert program('-m', 'package.program', 'a', '--b=c d') == [expected, 'a', '--b=c', 'd']


def test_what_the_user_says_stays(program):
    assert program('-m', 'package.program', tunables=f'{pages.TUNABLE}=0') == [f'{pages.TUNABLE}=0']


def test_an_import_asks_nothing(program):
    code = f'import package, train, eval\n{PROGRAM}'
    assert program('-c', code) == ['None']


@pytest.mark.parametrize(
    ('setting', 'library', 'asks'),
    [
        ('always [madvise] never', 'glibc 2.36', True),
        ('[always] madvise never', 'glibc 2.36', False),
        ('always madvise [never]', 'glibc 2.36', False),
        ('always [madvise] never', 'glibc 2.34', False),
        ('always [madvise] never', None, False),
        (None, 'glibc 2.36', False),
    ],
)
def test_only_where_it_can_help(monkeypatch, tmp_path, setting, library, asks):
    file = tmp_path / 'enabled'
    if setting is not None:
        file.write_text(setting + '\n')
    ran = []
    monkeypatch.setattr(pages, 'SETTING', file)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(sys, 'argv', ['-m'])
    monkeypatch.setattr(sys, 'gettrace', lambda: None)
    monkeypatch.setattr(os, 'confstr_names', {'CS_GNU_LIBC_VERSION': 2}, raising=False)
    monkeypatch.setattr(os, 'confstr', lambda name: library, raising=False)
    monkeypatch.setattr(os, 'execve', lambda *how: ran.append(how))
    monkeypatch.setenv(pages.VARIABLE, 'glibc.malloc.arena_max=2')
    pages.ask()
    assert bool(ran) == asks
    if asks:
        ((path, command, environment),) = ran
        assert path == sys.executable
        assert command == [sys.executable, *sys.orig_argv[1:]]
        assert environment[pages.VARIABLE] == f'glibc.malloc.arena_max=2:{pages.TUNABLE}=1'


def test_tunables_are_read_and_set_one_by_one():
    many = {pages.VARIABLE: f'glibc.malloc.arena_max=2:{pages.TUNABLE}=1:glibc.malloc.mmap_max=9'}
    assert pages.asked_for(many) == '1'
    assert pages.asked_for({pages.VARIABLE: f'x{pages.TUNABLE}=1'}) is None
    kept = 'glibc.malloc.arena_max=2:glibc.malloc.mmap_max=9'
    assert pages.wanted(many, '0')[pages.VARIABLE] == f'{kept}:{pages.TUNABLE}=0'


@pytest.mark.parametrize(
    ('subject', 'foreign'),
    [
        (Subject('hf', {}), True),
        (Subject('hf_inference', {}), True),
        (Subject('peak', {'whose': 'hf'}), True),
        (Subject('peak', {'whose': 'ours'}), False),
        (Subject('ours', {}), False),
        (Subject('qwix', {}), False),
    ],
)
def test_torch_runs_with_the_pages_that_it_gets_unasked(subject, foreign):
    assert subject.foreign == foreign
