"""The examples run as they stand, and what they show of other people's models is true.

Each `main()` runs once; its calls of `fit` are recorded, and the tests look at the trained adapters
that it made. HF's Flax classes need another environment: see `.ci/hf_flax.sh`.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import subprocess
from types import ModuleType
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxpeft as jp
from tests.toys import worst

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = ('lora', 'knowhira')
HF_FLAX = os.environ.get('JAXPEFT_HF_FLAX_PYTHON')


class Ran(NamedTuple):
    """One example after its `main()`: what `fit` was given and what it returned, by method."""

    module: ModuleType
    given: dict
    returned: dict
    printed: str


def run(name):
    """Imports `examples/NAME.py` and runs its `main()`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f'examples/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls, real = [], module.fit

    def recording(*args):
        calls.append((args, real(*args)))
        return calls[-1][1]

    module.fit = recording
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        module.main()
    module.fit = real
    given, returned = zip(*calls, strict=True)
    by_name = lambda values: dict(zip(module.METHODS, values, strict=True))
    return Ran(module, by_name(given), by_name(returned), printed.getvalue())


bare, nnx_ran, equinox_ran = (
    pytest.fixture(lambda name=name: run(name), scope='module', name=fixture)
    for name, fixture in (
        ('bare_pytree', 'bare'),
        ('nnx_module', 'nnx_ran'),
        ('equinox_module', 'equinox_ran'),
    )
)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def by_hand(method, state, path, kernel, x):
    """`method.apply` on one kernel of a tree's state."""
    one = list(state)
    for part in path.split('/'):
        one = [tree.get(part, {}) for tree in one]
    return method.apply(jp.State(*one), kernel, x)


def test_bare_eight_adapters_begin_as_the_base_and_learn_eight_tasks(bare, name):
    (method, params, states, x, _), (_, losses) = bare.given[name], bare.returned[name]
    assert worst(bare.module.serve(method, states, params, x), bare.module.net(params, x)) < 1e-6
    assert losses.shape[1] == 8
    assert (losses[-1] < 0.2 * losses[0]).all()
    assert bare.printed.count(f'{name}: worst of eight losses') == 1


def test_bare_one_call_is_eight_calls(bare, name):
    """By `method.apply` and by `merge`; one input for all, so that only the adapters differ."""
    module, (method, params, _, x, _) = bare.module, bare.given[name]
    states, x = bare.returned[name][0], jnp.stack([x[0]] * 8)
    together = module.serve(method, states, params, x)
    for i in range(8):
        one = module.pick(states, i)
        assert worst(together[i], module.applied_net(method, one, params, x[i])) < 1e-5
        assert worst(together[i], module.merged_net({'up|down': method}, one, params, x[i])) < 1e-5
        assert worst(together[i], together[(i + 1) % 8]) > 0.1


def test_bare_a_task_moves_its_own_adapter_only(bare):
    module, (method, params, states, x, y) = bare.module, bare.given['lora']
    first, _ = module.fit(method, params, states, x, y, 2)
    other, _ = module.fit(method, params, states, x, y.at[3].add(1.0), 2)
    moved = [worst(*(module.pick(s.params, i) for s in (first, other))) > 0 for i in range(8)]
    assert moved == [i == 3 for i in range(8)]


def test_nnx_begins_as_the_module_with_its_own_dropout_keys(nnx_ran, name):
    plan, graph, state, params, rest, x, _ = nnx_ran.given[name]
    model = nnx_ran.module.Net(nnx.Rngs(0))
    forward = nnx_ran.module.bind(plan, graph)
    first, after = forward(state, params, rest, x)
    assert worst(first, model(x)) < 1e-6
    again, _ = forward(state, params, rest, x)
    second, _ = forward(state, params, after, x)
    assert worst(first, again) == 0  # the call wrote nothing into `rest`
    assert worst(second, model(x)) < 1e-6 < worst(second, first)


def test_nnx_trains_the_adapter_and_nothing_else(nnx_ran, name):
    plan, _, start, params, *_ = nnx_ran.given[name]
    state, losses = nnx_ran.returned[name]
    assert losses[-1] < 0.6 * losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
    assert all(jax.tree.leaves(moved)), moved
    assert worst(start.consts, state.consts) == 0 if name == 'knowhira' else not state.consts
    _, fresh, _ = nnx_ran.module.split(nnx_ran.module.Net(nnx.Rngs(0)))
    assert worst(params, fresh) == 0
    assert {path.split('/')[-2] for path in plan_paths(plan, params)} == {'up', 'down'}


def plan_paths(plan, params):
    return [site.path for site in jp.tree.sites(plan, params)]


def test_nnx_the_merged_module_is_the_one_with_method_apply(nnx_ran, name, tmp_path):
    """Also after a way over the disk: the tree's keys are strings, as an adapter folder needs."""
    plan, _, _, params, _, x, _ = nnx_ran.given[name]
    state, method = nnx_ran.returned[name][0], nnx_ran.module.METHODS[name]
    jp.save_adapter(tmp_path / 'adapter', plan, state, params)
    plan, loaded = jp.load_adapter(tmp_path / 'adapter', params)
    model = nnx_ran.module.Net(nnx.Rngs(0))
    model.eval()
    y = x
    for i, block in enumerate(model.blocks):
        dense = lambda x, layer, at: (
            layer.bias[...][None, :] + by_hand(method, state, at, layer.kernel[...], x)
        )
        inner = jnp.tanh(dense(block.norm(y), block.up, f'blocks/{i}/up/kernel'))
        y = y + dense(inner, block.down, f'blocks/{i}/down/kernel')
    expected, base = model.head(y), model(x)
    nnx.update(model, nnx.restore_int_paths(jp.merge(plan, loaded, params)))
    assert worst(model(x), expected) < 1e-5 < worst(base, expected)


def test_equinox_begins_as_the_module_and_trains_the_adapters_only(equinox_ran, name):
    module, (start, x, y) = equinox_ran.module, equinox_ran.given[name]
    model, losses = equinox_ran.returned[name]
    layers, before = (module.nodes(module.Adapted)(m) for m in (model, start))
    assert [layer.linear.weight.shape for layer in layers] == [(48, 16), (48, 48), (4, 48)]
    assert worst(jax.vmap(start)(x), jax.vmap(plain(module, start))(x)) < 1e-6
    assert losses[-1] < 0.8 * losses[0]
    for layer, old in zip(layers, before, strict=True):
        assert worst(layer.linear, old.linear) == 0
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), layer.state.params, old.state.params
        )
        assert all(moved.values()), moved
        assert all((layer.state.consts[k] == old.state.consts[k]).all() for k in old.state.consts)
    grads = eqx.filter_grad(module.loss_of)(*module.split(model), x, y)
    rank = 4 if name == 'knowhira' else 0
    assert sum(g.size for g in jax.tree.leaves(grads)) == 4 * (64 + 96 + 52) + 3 * rank


def plain(module, model):
    """The model with each adapted layer replaced by the layer that it holds."""
    linears = [layer.linear for layer in module.nodes(module.Adapted)(model)]
    return eqx.tree_at(module.nodes(module.Adapted), model, linears)


def test_equinox_bound_is_merged(equinox_ran, name):
    module, (_, x, _) = equinox_ran.module, equinox_ran.given[name]
    model, _ = equinox_ran.returned[name]
    merged = module.merge(model)
    assert not module.nodes(module.Adapted)(merged)
    assert jax.tree.structure(merged) == jax.tree.structure(plain(module, model))
    gap = worst(jax.vmap(model)(x), jax.vmap(merged)(x))
    assert gap < 1e-5 < worst(jax.vmap(merged)(x), jax.vmap(plain(module, model))(x))


@pytest.mark.skipif(not HF_FLAX, reason='JAXPEFT_HF_FLAX_PYTHON names no Python: .ci/hf_flax.sh')
def test_hf_flax_gpt_neo():
    """The example's own checks, in the environment that has HF's Flax classes."""
    done = subprocess.run(
        [HF_FLAX, 'examples/hf_flax_gpt_neo.py', '--check'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if 'checked' in line] == [
        f'{name}: checked' for name in NAMES
    ]


def test_readme_names_every_example():
    readme = (ROOT / 'README.md').read_text()
    for file in sorted((ROOT / 'examples').glob('*.py')):
        assert f'examples/{file.name}' in readme
