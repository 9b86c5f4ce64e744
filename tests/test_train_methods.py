"""Every method through the training program: it learns, is saved, and a stopped run goes on."""

import jax
import numpy as np
import optax
import pytest

import jaxpeft as jp
from tests import train_tiny
from tests.test_train_loop import StopAfter, lines, weights
from train import checkpoint, cli, config, feed, loop, model, optimizer
from train.stop import Stop

COMMANDS = {
    'lora+daa': ['--r_ab=4', '--loraplus'],
    'hylorada+sparse_mlp+daa': ['--r_ab=4', '--set=sparse_mlp.neurons=16'],
    'hylorada_v2': ['--r_ab=4', '--set=hylorada_v2.structure_dim=8'],
    'dora': ['--r_ab=4', '--loraplus', '--loraplus_ratio=4', '--weight_decay=0.01'],
    'kasa': ['--r_ab=4'],
    'prefix': ['--set=prefix.length=4'],
    'ia3': [],
    'lora+s2': ['--r_ab=4', '--set=s2.group=8'],
    'full': ['--lr=1e-3'],
    'lora': ['--r_ab=4', '--rank_strategy=decreasing', '--adapter_dtype=bfloat16', '--bias=all'],
    'hira': ['--r_ab=4', '--no_scan', '--layers=1', '--rank_pattern=q_proj=2'],
}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def start(tiny, folder, method, stop=None):
    """Trains the method in `folder` from what it holds."""
    folder.mkdir(exist_ok=True)
    common = [f for f in train_tiny.flags(tiny) if not f.startswith(('--r_ab', '--target'))]
    argv = [*common, '--mesh=1,1,1', f'--method={method}', *COMMANDS[method]]
    setting = cli.parse(argv)[0]
    built = model.setup(setting, fresh=not checkpoint.exists(folder / 'checkpoints'))
    data = feed.make(setting, built.tokenizer, built.mesh)
    return built, loop.train(setting, built, data, folder, stop or Stop())


@pytest.mark.parametrize('method', COMMANDS)
def test_a_method_trains_and_a_stopped_run_ends_as_the_whole_one(method, tiny, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    built, outcome = start(tiny, whole, method)
    assert outcome.finished
    losses = [line['loss'] for line in lines(whole) if 'loss' in line]
    assert losses[-1] < losses[0]
    assert not start(tiny, parts, method, StopAfter(3))[1].finished
    assert start(tiny, parts, method)[1].finished
    assert lines(parts) == lines(whole)
    assert weights(parts) == weights(whole)
    plan, state = jp.load_adapter(whole / 'adapter', built.params)
    assert jp.count(state) == jp.count(built.state)
    assert {rule.spec['name'] for rule in map(_method, plan.values())} >= set(method.split('+'))


def _method(rule):
    return getattr(rule, 'method', rule)


def test_loraplus_moves_b_at_its_ratio_of_the_rate_and_decays_the_factors_alone():
    leaves = {'a': np.ones((2, 3)), 'b': np.ones((3, 2)), 'm': np.ones(2), 'gate': np.ones(3)}
    params = {'x': {name: jax.numpy.asarray(leaf) for name, leaf in leaves.items()}}
    grads = jax.tree.map(jax.numpy.ones_like, params)
    rate = optax.constant_schedule(1e-2)
    moves = {}
    for plus in (False, True):
        setting = config.Optim(loraplus=plus, loraplus_ratio=16.0, max_grad_norm=0)
        tx = optimizer.make(setting, rate)
        update, _ = tx.update(grads, tx.init(params), params)
        moves[plus] = {name: float(leaf.ravel()[0]) for name, leaf in update['x'].items()}
    assert all(abs(move + 1e-2) < 1e-5 for move in moves[False].values())
    assert abs(moves[True]['b'] + 16e-2) < 1e-4
    assert all(abs(moves[True][name] + 1e-2) < 1e-5 for name in ('a', 'm', 'gate'))
    tx = optimizer.make(config.Optim(loraplus=True, weight_decay=0.1, max_grad_norm=0), rate)
    zero = jax.tree.map(jax.numpy.zeros_like, params)
    update, _ = tx.update(zero, tx.init(params), params)
    decay = {name: float(leaf.ravel()[0]) for name, leaf in update['x'].items()}
    np.testing.assert_allclose(decay['a'], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(decay['b'], -16e-3, rtol=1e-5)  # decoupled decay follows the rate
    assert decay['m'] == decay['gate'] == 0.0


@pytest.mark.parametrize('method', ['ia3', 'full'])
def test_weight_decay_without_a_factor_is_refused(method, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, method, ['--weight_decay=0.01'])
    with pytest.raises(ValueError, match=r'--weight_decay 0\.01 shrinks the factors a and b'):
        start(tiny, tmp_path, method)


def test_loraplus_without_a_factor_b_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, 'ia3', ['--loraplus'])
    with pytest.raises(ValueError, match='moves the factors b faster, and this adapter has none'):
        start(tiny, tmp_path, 'ia3')


def test_shifted_attention_trains_and_evaluation_is_dense(tiny):
    common = [f for f in train_tiny.flags(tiny) if not f.startswith(('--r_ab', '--target'))]
    built = model.setup(cli.parse([*common, '--method=lora+s2', '--set=s2.group=8'])[0])
    tokens = jax.numpy.arange(32)[None] % 20
    plain = built.model.apply({'params': built.params}, tokens)
    run = lambda forward: forward(built.state, {'params': built.params}, tokens)
    np.testing.assert_allclose(run(built.evaluated), plain, atol=1e-5)
    assert float(abs(run(built.forward) - plain).max()) > 1e-3


def test_a_method_without_numbers_is_refused_by_itself(tiny):
    common = [f for f in train_tiny.flags(tiny) if not f.startswith(('--r_ab', '--target'))]
    setting = cli.parse([*common, '--mesh=1,1,1', '--method=s2'])[0]
    with pytest.raises(ValueError, match=r's2 has no numbers to train; .* lora\+s2'):
        model.setup(setting)
