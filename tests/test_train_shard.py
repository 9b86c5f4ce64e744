"""Training on a 2 x 2 x 2 mesh of fake devices: specs, the numbers of one device, one compile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests import train_tiny
from train import checkpoint, feed, ledger, mesh, model, optimizer, step

STEPS = 5
ONE, EIGHT = '1,1,1', '2,2,2'
Q = 'transformer/h/attn/attention/q_proj/kernel'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def at(tree, path):
    for name in path.split('/'):
        tree = tree[name]
    return tree


def spec(array):
    """The axes that an array is split over, without trailing Nones."""
    axes = list(array.sharding.spec)
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def train(tiny, shape, *flags):
    """(built, feed, programs, TrainState, losses) after STEPS updates on a mesh of this shape."""
    flags = flags or ('--ortho_lambda=0.01',)
    config = train_tiny.config(tiny, f'--mesh={shape}', '--grad_acc=2', '--train_on_inputs', *flags)
    built = model.setup(config)
    # More devices than cores: two programs in flight can lock each other out of a rendezvous.
    jax.block_until_ready(built.state)
    data = feed.make(config, built.tokenizer, built.mesh)
    rate = optimizer.schedule(config.optim, data.steps)
    tx = optimizer.make(config.optim, rate)
    programs = step.compile_programs(
        built.plan, built.forward, tx, rate, built.mesh, built.state.params, 0
    )
    copied = jax.block_until_ready(jax.tree.map(jnp.copy, built.state.params))
    now = jax.block_until_ready(programs.start(copied))
    losses = []
    for s in range(STEPS):
        fed = data.at(s)
        now, metrics = programs.update(now, built.state.consts, built.params, fed.arrays)
        jax.block_until_ready(now)
        losses.append({name: float(x) for name, x in metrics.items()})
    sums = programs.validate(now.params, built.state.consts, built.params, data.validation[0])
    losses.append({'val': float(sums[0]), 'weights': float(sums[1])})
    return built, data, programs, now, losses


@pytest.fixture(scope='module')
def eight(tiny):
    return train(tiny, EIGHT)


@pytest.fixture(scope='module')
def one(tiny):
    return train(tiny, ONE)


def test_everything_lies_where_the_rules_say(eight):
    built, data, _, now, _ = eight
    assert spec(at(built.params, Q)) == P(None, 'fsdp', 'tensor')
    factors = at(now.params, Q)
    assert spec(factors['a']) == P(None, 'fsdp')
    assert spec(factors['b']) == P(None, None, 'tensor')
    assert spec(factors['gate']) == P()
    assert spec(at(built.state.consts, Q)['sigma']) == P()
    for moment in ('mu', 'nu'):
        kept = at(optax.tree.get(now.opt_state, moment), Q)
        assert spec(kept['a']) == P(None, 'fsdp')
        assert spec(kept['b']) == P(None, None, 'tensor')
    assert len(factors['a'].sharding.device_set) == 8
    batch = data.at(0).arrays
    assert spec(batch['tokens']) == P(None, ('data', 'fsdp'))
    assert batch['tokens'].shape[1] % mesh.row_multiple(built.mesh) == 0
    shard = at(built.params, Q).addressable_shards[0].data
    assert shard.shape == (2, 16, 16)  # each device holds a quarter of the kernel


def test_eight_devices_give_the_numbers_of_one(eight, one):
    for many, single in zip(eight[4], one[4], strict=True):
        assert many.keys() == single.keys()
        for name in many:
            np.testing.assert_allclose(many[name], single[name], rtol=2e-5, err_msg=name)
    born = jax.tree.leaves((eight[0].state.params, eight[0].state.consts))
    alone = jax.tree.leaves((one[0].state.params, one[0].state.consts))
    for x, y in zip(born, alone, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('method', ['hylorada_v2+sparse_mlp+daa+ia3', 'dora+prefix', 'kasa'])
def test_every_kind_of_method_trains_on_eight_devices_as_on_one(method, tiny):
    """Overrides and what layers share are replicated, whole leaves lie where the base's do."""
    many, single = (
        train(tiny, shape, f'--method={method}', '--bias=all') for shape in (EIGHT, ONE)
    )
    for ours, alone in zip(many[4], single[4], strict=True):
        for name, value in ours.items():
            np.testing.assert_allclose(value, alone[name], rtol=1e-4, err_msg=name)
    assert many[2].update._cache_size() == 1


def test_gradients_on_eight_devices_are_those_on_one(eight, one):
    grads = []
    for built, data, *_ in (eight, one):
        rate = optax.constant_schedule(1.0)
        programs = step.compile_programs(
            built.plan, built.forward, optax.sgd(1.0), rate, built.mesh, built.state.params, 0
        )
        now = programs.start(jax.tree.map(jnp.copy, built.state.params))
        arrays = data.at(0).arrays
        now, _ = programs.update(now, built.state.consts, built.params, arrays)
        jax.block_until_ready(now)
        moved = jax.tree.map(
            lambda x, y: np.asarray(x) - np.asarray(y), built.state.params, now.params
        )
        grads.append(jax.tree.leaves(moved))
    largest = max(np.abs(x).max() for x in grads[1])
    assert largest > 0
    for x, y in zip(*grads, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * largest, rtol=0)


def test_one_compile(eight, one):
    for _, _, programs, _, _ in (eight, one):
        assert programs.update._cache_size() == 1
        assert programs.validate._cache_size() == 1


def test_saved_on_eight_restored_on_one_and_back(eight, one, tmp_path):
    built, _, _, now, _ = eight
    with checkpoint.Checkpoints(tmp_path, 1) as saved:
        saved.save(now, built.state.consts, ledger.Ledger(step=STEPS, best_loss=1.5))
    for target in (one, eight):
        programs, consts = target[2], target[0].state.consts
        with checkpoint.Checkpoints(tmp_path, 1) as saved:
            back, back_consts, counts = saved.restore(programs.shapes, consts)
        assert counts == ledger.Ledger(step=STEPS, best_loss=1.5)
        jax.tree.map(np.testing.assert_array_equal, back, now)
        jax.tree.map(np.testing.assert_array_equal, back_consts, built.state.consts)
        same = jax.tree.map(lambda x, s: x.sharding == s.sharding, back, programs.shapes)
        assert all(jax.tree.leaves(same))
        # and the run goes on from it without a second compile
        fed = target[1].at(0)
        after, _ = programs.update(back, back_consts, target[0].params, fed.arrays)
        jax.block_until_ready(after)
        assert programs.update._cache_size() == 1


def test_meshes():
    assert dict(mesh.make('2,2,2').shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    assert dict(mesh.make('-1,2,1').shape) == {'data': 4, 'fsdp': 2, 'tensor': 1}
    assert mesh.make('1,1,1').size == 1
    for wrong, message in (
        ('3,3,1', r'needs 9 devices, but 8 .* nearest that fits is --mesh 8,1,1'),
        ('2,2', 'three sizes'),
        ('-1,-1,1', 'three sizes'),
        ('0,1,1', 'three sizes'),
        ('a,b,c', 'three sizes'),
    ):
        with pytest.raises(ValueError, match=message):
            mesh.make(wrong)
