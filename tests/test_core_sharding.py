"""An adapter's leaves lie beside the axes of their kernel; sharded numbers equal one device's."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxpeft as jp
from tests import toys


@pytest.fixture(scope='module')
def mesh():
    return jax.make_mesh((2, 2), ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2)


def _shardings(params, mesh):
    """Column-parallel up and heads, row-parallel down and out, the rest replicated."""
    specs = {
        'layers/up/kernel': (None, 'fsdp', 'tensor'),
        'layers/down/kernel': (None, 'tensor', 'fsdp'),
        'layers/heads/kernel': (None, 'fsdp', 'tensor', None),
        'layers/out/kernel': (None, 'tensor', None, 'fsdp'),
    }
    return jp.paths.nest({
        path: NamedSharding(mesh, PartitionSpec(*specs.get(path, ())))
        for path, _ in jp.paths.flatten(params)
    })  # fmt: skip


def test_specs_and_numbers(mesh, key):
    model, params, plan, single, x = toys.setup('scan', jp.methods.knowhira(rank=4), key)
    placed = _shardings(params, mesh)
    shapes = jax.eval_shape(functools.partial(jp.init, plan), key, params)
    specs = jp.shardings(plan, shapes, placed)
    spec = lambda part, path: jp.paths.get(getattr(specs, part), path).spec
    expected = {
        'up/kernel/a': (None, 'fsdp', None),
        'up/kernel/b': (None, None, 'tensor'),
        'down/kernel/a': (None, 'tensor', None),
        'heads/kernel/b': (None, None, 'tensor'),
        'out/kernel/a': (None, 'tensor', None),
        'out/kernel/b': (None, None, 'fsdp'),
        'up/kernel/gate': (None, None),
    }
    for path, want in expected.items():
        assert spec('params', f'layers/{path}') == PartitionSpec(*want), path
    assert spec('consts', 'layers/up/kernel/sigma') == PartitionSpec(None, None)

    sharded = jax.device_put(params, placed)
    born = jax.jit(functools.partial(jp.init, plan), out_shardings=specs)(key, sharded)
    jax.block_until_ready(born)
    a = born.params['layers']['up']['kernel']['a']
    assert a.sharding.spec == PartitionSpec(None, 'fsdp', None)
    assert toys.worst(born, single) <= 1e-5
    state = toys.moved(single, key)
    placed_state = jax.device_put(state, specs)
    out = jax.jit(jp.bind(plan, model.apply))(placed_state, {'params': sharded}, x)
    want = jax.jit(jp.bind(plan, model.apply))(state, {'params': params}, x)
    np.testing.assert_allclose(jax.block_until_ready(out), want, atol=1e-5)


def test_an_axis_that_does_not_divide_is_dropped(mesh, key):
    params = {'w': jax.random.normal(key, (6, 4))}
    plan = {'w': jp.methods.lora(rank=3)}
    shapes = jax.eval_shape(functools.partial(jp.init, plan), key, params)
    whole = NamedSharding(mesh, PartitionSpec(('fsdp', 'tensor'), None))
    specs = jp.shardings(plan, shapes, {'w': whole})
    assert specs.params['w']['a'].spec == PartitionSpec(None, None)  # 6 rows over 4 devices


def test_an_unplaced_kernel_is_an_error(key):
    params = {'w': jax.random.normal(key, (6, 4))}
    plan = {'w': jp.methods.lora(rank=3)}
    shapes = jax.eval_shape(functools.partial(jp.init, plan), key, params)
    with pytest.raises(ValueError, match='w is adapted but its base sharding is'):
        jp.shardings(plan, shapes, {'w': jax.devices()[0]})


def test_an_override_on_the_same_module_says_nothing_of_the_kernel(mesh, key):
    params = {'k_proj': {'kernel': jax.random.normal(key, (4, 6))}}
    placed = {'k_proj': {'kernel': NamedSharding(mesh, PartitionSpec(None, 'tensor'))}}
    plan = {'k_proj.*': jp.methods.ia3(dim=6), 'k_proj/kernel': jp.methods.lora(rank=2)}
    shapes = jax.eval_shape(functools.partial(jp.init, plan), key, params)
    leaves = jp.shardings(plan, shapes, placed).params['k_proj']['kernel']
    assert leaves['a'].spec == PartitionSpec(None, None)
    assert leaves['b'].spec == PartitionSpec(None, 'tensor')
