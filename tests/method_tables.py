"""The tables of METHODS.md, made from the code. `python -m tests.method_tables` rewrites them.

A table lies between `<!-- table: NAME -->` and `<!-- end -->`; everything else is written by hand.
"""

import functools
import math
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable

import jax

import jaxpeft as jp
from tests import method_costs, method_trials
from train.options import settable

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'METHODS.md'
WIDTH = 118
MODELS = (  # name, targets of the methods over kernels, rank
    ('Qwen/Qwen2-0.5B', 'q_proj,k_proj,v_proj,o_proj', 8),
    ('meta-llama/Meta-Llama-3-8B', 'q_proj,k_proj,v_proj,up_proj,down_proj', 32),
)
FORMULAS = {  # a site and layer: of a kernel [n, m] and rank r, or of an override's own dimensions
    'daa': 'heads * (1 + num_buckets)',
    'dora': 'r * (n + m) + m',
    'full': 'every number of the base',
    'hira': 'r * (n + m)',
    'hylorada': 'r * (n + m) + m + 2',
    'hylorada_v2': 'r * (n + m) + m + 2 + structure_dim',
    'ia3': 'dim',
    'kasa': 'r * (n + m) + r',
    'knowhira': 'r * (n + m) + r',
    'lora': 'r * (n + m)',
    'prefix': '2 * length * kv_heads * head_dim',
    's2': '0',
    'sparse_mlp': '2 * dim * neurons + neurons',
}


def is_override(name: str) -> bool:
    """Whether the method is of a module's call and not of kernels or leaves."""
    return hasattr(jp.methods.module(name), 'dimensions')


KERNELS = [name for name in jp.methods.names() if 'rank' in jp.methods.options(name)]
OTHERS = [name for name in jp.methods.names() if name not in KERNELS]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ['---'] * len(lines[0]))
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


@functools.cache
def _shapes(model_name: str) -> tuple:
    model = jp.models.build(jp.models.config_of(model_name))
    return model, jp.models.param_shapes(model)


def counted(name: str, model_name: str, targets: str, rank: int) -> tuple[int, int]:
    """(all trainable numbers, those that layers share) of a method on a model, by `jp.count`.

    Raises:
      ValueError: where the closed formula gives another number.
    """
    model, params = _shapes(model_name)
    ranked = name in KERNELS
    given = {name: {'rank': rank} if ranked else {}}
    plan = jp.compose(model, params, name, options=given, targets=targets if ranked else '')
    state = jax.eval_shape(functools.partial(jp.init, plan), jax.random.key(0), params)
    total, shared, formula = jp.count(state), 0, 0
    for site in jp.tree.sites(plan, params):
        spec = site.method.spec
        if site.shared:
            shared += jp.count(jp.State(jp.tree.leaves_of(state.params, site), {}))
        elif site.view is None:
            formula += math.prod(spec['stack']) * eval(FORMULAS[name], {}, dict(spec))
        else:
            shape = jp.paths.get(params, site.path).shape
            stack, n, m = site.view.shape(shape)
            one = math.prod(shape[len(stack) :]) if not ranked else 0
            sizes = {'n': n, 'm': m, 'r': rank, **spec}
            formula += math.prod(stack) * (one or eval(FORMULAS[name], {}, sizes))
    if total != formula + shared:
        raise ValueError(f'{name}: {FORMULAS[name]} gives {formula:,}, jp.count {total:,}')
    return total, shared


def parameters() -> str:
    """Closed formulas and exact counts."""
    rows = []
    for name in jp.methods.names():
        counts = [counted(name, *setting) for setting in MODELS]
        formula = f'`{FORMULAS[name].replace(" * ", " ")}`' if name != 'full' else FORMULAS[name]
        shared = f', and {counts[0][1]:,} shared' if counts[0][1] else ''
        rows.append((f'`{name}`', formula + shared, *(f'{total:,}' for total, _ in counts)))
    head = ('method', 'trained numbers a site and layer', 'Qwen2-0.5B', 'Llama-3-8B')
    return table(head, rows)


def _ratios(made: Callable, measure: Callable, name: str) -> str:
    return f'{measure(*made(name)) / measure(*made("lora")):.3f}'


@functools.cache
def flops_cells(name: str) -> tuple[str, str]:
    """FLOPs against LoRA's on one kernel (`-` for an override) and on two blocks."""
    ratio = functools.partial(_ratios, measure=method_costs.step, name=name)
    kernel = '-' if is_override(name) else ratio(method_costs.of_kernel)
    return kernel, ratio(method_costs.of_blocks)


def kept_cells(name: str) -> tuple[str, str]:
    """The same of the bytes kept for the backward pass."""
    ratio = functools.partial(_ratios, measure=method_costs.kept, name=name)
    kernel = '-' if is_override(name) else ratio(method_costs.of_kernel)
    return kernel, ratio(method_costs.of_blocks)


def cost() -> str:
    """FLOPs and kept bytes against LoRA's."""
    head = (
        'method',
        'FLOPs, one kernel',
        'FLOPs, two blocks',
        'kept, one kernel',
        'kept, two blocks',
    )
    rows = []
    for name in jp.methods.names():
        (one, two), (three, four) = flops_cells(name), kept_cells(name)
        rows.append((f'`{name}`', one, two, three, four))
    absolute = [
        f'{measure(*made("lora")) / size:,.2f} {unit}'
        for measure, size, unit in (
            (method_costs.step, 1e9, 'GFLOP'),
            (method_costs.kept, 1e6, 'MB'),
        )
        for made in (method_costs.of_kernel, method_costs.of_blocks)
    ]
    return table(head, [*rows, ('`lora` itself', *absolute)])


def options() -> str:
    """The matrix in two tables, then what the refusals say."""
    parts = []
    for names in (KERNELS, OTHERS):
        rows = [
            (row, *(method_trials.tried(row, n).cell for n in names)) for row in method_trials.ROWS
        ]
        parts.append(table(('', *(f'`{n}`' for n in names)), rows))
    return '\n\n'.join([*parts, 'What the errors say:', refusals()])


def refusals() -> str:
    """Each message with the options and methods that it is for."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in method_trials.ROWS:
        names: dict[str, list[str]] = {}
        for name in jp.methods.names():
            why = method_trials.tried(row, name).why
            if why:
                names.setdefault(why, []).append(name)
        for why, refused in names.items():
            said.setdefault((why, ', '.join(refused)), []).append(row)
    lines = [f'{", ".join(rows)} ({names}): "{why}"' for (why, names), rows in said.items()]
    return '\n'.join(map(_wrapped, lines))


def defaults() -> str:
    """Default targets, options with their defaults, and what the model gives."""
    lines = []
    for name in jp.methods.names():
        taken = settable(name)
        given = ', '.join(f'`{k}={v!r}`' for k, v in taken.items()) or 'no options'
        model = [k for k in jp.methods.options(name) if k not in taken]
        more = f'; from the model: {", ".join(f"`{k}`" for k in model)}' if model else ''
        lines.append(_wrapped(f'`{name}` on {", ".join(jp.methods.defaults(name))}: {given}{more}'))
    return '\n'.join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent='- ', subsequent_indent='  ', break_on_hyphens=False
    )


TABLES = {'parameters': parameters, 'cost': cost, 'options': options, 'defaults': defaults}
BLOCK = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)', re.S)


def written(name: str) -> str:
    """A table as the page holds it."""
    found = {match[2]: match[0] for match in BLOCK.finditer(PAGE.read_text())}
    return found[name].split('-->\n', 1)[1].removesuffix('\n<!-- end -->')


def main() -> None:
    """Rewrites every table of the page."""
    page = PAGE.read_text()
    PAGE.write_text(BLOCK.sub(lambda m: f'{m[1]}{TABLES[m[2]]()}\n{m[3]}', page))


if __name__ == '__main__':
    main()
