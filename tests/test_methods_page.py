"""METHODS.md is true: a section a method, its tables are those of the code, its names exist."""

import re
from operator import attrgetter

import pytest

import jaxpeft as jp
from tests import method_costs, method_tables, method_trials
from train import config as configs

PAGE = method_tables.PAGE.read_text()
SAYS = ('**Trained**', '**Cost**', '**Learning rate**', '**Departs**')  # a bullet of each section


def sections():
    """Name -> text of the sections `### `NAME``."""
    parts = re.split(r'^### `(\w+)`$', PAGE, flags=re.M)[1:]
    ends = [re.split(r'^##', text, flags=re.M)[0] for text in parts[1::2]]
    return dict(zip(parts[::2], ends, strict=True))


def test_every_method_has_a_section_that_says_what_a_user_asks():
    found = sections()
    assert sorted(found) == jp.methods.names()
    for name, text in found.items():
        assert re.search(r'^    \S', text, re.M), f'{name} has no equation'
        for what in SAYS if name != 'full' else SAYS[:3]:
            assert what in text, f'{name} does not say {what}'
        assert re.search('merge|Merge', text), f'{name} does not say whether it merges'


@pytest.mark.parametrize('name', ['parameters', 'defaults'])
def test_a_table_is_what_the_code_gives(name):
    """After a change: python -m tests.method_tables."""
    assert method_tables.written(name) == method_tables.TABLES[name]()


def test_the_matrix_is_what_was_tried_and_no_option_is_ignored_in_silence():
    """One test, so that parallel workers do not try every cell twice."""
    for row in method_trials.ROWS:
        for name in jp.methods.names():
            cell, why = method_trials.tried(row, name)
            assert cell in ('yes', 'error', method_trials.NOTHING), (row, name, cell)
            assert bool(why) == (cell == 'error'), (row, name)
    assert method_tables.written('options') == method_tables.options()


def test_the_flops_are_what_the_jaxprs_count():
    lines = method_tables.written('cost').splitlines()
    cells = {line.split('`')[1]: line.split(' | ')[1:3] for line in lines[2:-1]}
    assert sorted(cells) == jp.methods.names()
    for name, shown in cells.items():
        assert tuple(shown) == method_tables.flops_cells(name), name


def test_the_counter_of_flops_knows_loops_and_branches():
    """A scan counts its length, a branch its dearest side, a product 2 n m k."""
    import jax
    import jax.numpy as jnp

    w = jnp.ones((4, 4))

    def fn(x):
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert method_costs.flops.count(fn, jnp.ones((2, 4))) == (3 + 2) * 2 * 2 * 4 * 4


def test_kept_bytes_are_the_activations_alone():
    """Of `y = x (W + A B)` the backward pass keeps x; weights and factors are no activations."""
    import jax

    fn, wrt, rest = method_costs.of_kernel('lora')
    assert method_costs.kept(fn, wrt, rest) == 4 * method_costs.TOKENS * method_costs.WIDTH
    assert len(jax.tree.leaves(rest)) == 2  # the kernel, and the prior that LoRA does not read


def test_names_flags_and_lines():
    for name in re.findall(r'\bjp\.([a-z_]+(?:\.[a-z_]+)*)', PAGE):
        attrgetter(name)(jp)
    flags = {f.replace('-', '_') for f in re.findall(r'--([a-z][a-z_]+)', PAGE)} - {'no_scan'}
    assert flags <= set(configs.flags())
    for path in re.findall(r'`((?:jaxpeft|train|eval|tests)/[\w./]+)`', PAGE):
        assert (method_tables.PAGE.parent / path).exists(), path
    for anchor in re.findall(r'\]\(#([\w-]+)\)', PAGE):
        titles = re.findall(r'^#+ (.*)$', PAGE, re.M)
        known = {re.sub(r'[^\w -]', '', t).lower().replace(' ', '-') for t in titles}
        assert anchor in known, anchor
    assert max(map(len, PAGE.splitlines())) <= 120
