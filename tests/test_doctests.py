"""Every example in a docstring runs, and prints what it says it prints."""

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import eval
import jaxpeft
import train

PACKAGES = (jaxpeft, train, eval)
PROGRAMS = {'jaxpeft.methods.__main__'}  # prints its table when imported
if importlib.util.find_spec('lm_eval') is None:  # the extra `harness`; the file has no example
    PROGRAMS.add('eval.lm')
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    """The names of all modules of the three packages."""
    found = [package.__name__ for package in PACKAGES]
    for package in PACKAGES:
        walked = pkgutil.walk_packages(package.__path__, f'{package.__name__}.')
        found += [info.name for info in walked if info.name not in PROGRAMS]
    return found


def examples():
    """One parameter for each docstring that holds an example."""
    finder = doctest.DocTestFinder()
    found = {}
    for name in modules():
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                found[test.name] = test
    return [pytest.param(test, id=name) for name, test in sorted(found.items())]


EXAMPLES = examples()


@pytest.mark.parametrize('example', EXAMPLES)
def test_example(example):
    said = []
    failed, tried = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append)
    assert tried
    assert not failed, ''.join(said)


def test_the_public_functions_have_examples():
    """The calls that a reader meets first: the collection above did not lose them."""
    found = {case.id for case in EXAMPLES}
    for name in ('tree.init', 'linen.bind', 'paths.targets', 'views.on', 'prepare.prepare'):
        assert f'jaxpeft.{name}' in found
    for method in jaxpeft.methods.names():
        assert f'jaxpeft.methods.{method}.{method}' in found
