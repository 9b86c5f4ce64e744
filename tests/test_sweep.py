"""K runs as one program: the numbers of runs alone, the base held once, pruning, checkpoints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import train_tiny
from train import feed, loop, model, optimizer, step, sweep
from train.stop import Stop
from train.sweep import lanes as lanes_lib
from train.sweep import members as members_lib
from train.sweep import program
from train.sweep.loop import Sweep

Member = sweep.Member


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module', autouse=True)
def compiled():
    with train_tiny.compiled_once():
        yield


def config_for(tiny, method, *more):
    return train_tiny.config(tiny, f'--method={method}', '--mesh=1,1,1', *more)


def loaded(config):
    built = model.setup(config, fresh=False)
    return built, feed.examples(config, built.tokenizer, say=lambda line: None)


def alone(config, examples):
    """Losses, validation losses and the last adapter of the run by train.step's own programs."""
    built = model.setup(config)
    fed = feed.from_examples(config, examples, built.mesh)
    rate = optimizer.schedule(config.optim, fed.steps)
    tx = optimizer.make(config.optim, rate)
    programs = step.compile_programs(
        built.plan, built.forward, tx, rate, built.mesh, built.state.params, config.optim.seed
    )
    now, consts, losses, held = programs.start(built.state.params), built.state.consts, [], {}
    for number in range(1, fed.steps + 1):
        now, metrics = programs.update(now, consts, built.params, fed.at(number - 1).arrays)
        losses.append(float(metrics['loss']))
        if loop.validates(config, fed, number):
            held[number] = loop.validation_loss(programs, now, consts, built, fed)[0]
    return np.array(losses), held, jp.State(now.params, consts)


CASES = {
    'lora': ({'alpha': 4.0}, {'alpha': 16.0}, {}),
    'knowhira': ({'ortho_lambda': 1e-2}, {'knowledge_alpha': 0.3}, {'gate_init': -1.0}),
    'kasa': ({'alpha': 4.0}, {'beta': 1e-2}, {'gamma': 1e-2}),
    'hylorada': ({'alpha': 4.0}, {'gate_init': 0.5}, {'residual_init': 0.3}),
    'hira': ({}, {}, {}),
    'full': ({}, {}, {}),
}


@pytest.mark.parametrize(('method', 'own'), [(m, own) for m in CASES for own in (True, False)][:8])
def test_each_member_has_the_numbers_of_its_run_alone(tiny, method, own):
    """20 updates; seeds of their own (starts, orders, validation rows) or one, other rates."""
    width = 0 if own else 2  # all at once; two, then the last
    config = config_for(tiny, method, '--max_steps=20', '--eval_steps=10', '--weight_decay=0.01')
    built, examples = loaded(config)
    members = [
        Member(seed=i if own else None, lr=rate, weight_decay=decay, options=options)
        for i, (rate, decay, options) in enumerate(
            zip((1e-2, 3e-3, 1e-3), (0.1, 0.01, 0.0), CASES[method], strict=True)
        )
    ]
    outcome = sweep.train(config, built, examples, members, width=width)
    assert outcome.finished
    firsts = [run.losses[0] for run in outcome.runs]
    assert not own or len(set(firsts)) == 3  # batches of their own
    for run in outcome.runs:
        losses, held, state = alone(run.config, examples)
        np.testing.assert_allclose(run.losses, losses, rtol=1e-5)
        assert run.validation.keys() == held.keys() == {10, 20}
        np.testing.assert_allclose(list(run.validation.values()), list(held.values()), rtol=1e-5)
        assert run.ledger.step == 20
        assert run.ledger.best_loss == min(run.validation.values())
        assert jax.tree.structure(run.state) == jax.tree.structure(state)
        if run.ledger.best_step == 20:
            for mine, theirs in zip(jax.tree.leaves(run.state), jax.tree.leaves(state), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('method', ['dora', 'full', 'hylorada'])
def test_the_other_methods_too(tiny, method):
    config = config_for(tiny, method, '--max_steps=4', '--eval_strategy=no')
    built, examples = loaded(config)
    options = CASES.get(method, ({'alpha': 4.0}, {}, {}))
    members = [Member(lr=rate, options=o) for rate, o in zip((1e-2, 1e-3), options, strict=False)]
    for run in sweep.train(config, built, examples, members, width=1).runs:
        losses, held, _ = alone(run.config, examples)
        np.testing.assert_allclose(run.losses, losses, rtol=1e-5)
        assert run.validation == held == {}


@pytest.mark.parametrize('method', ['lora', 'knowhira'])
def test_gradients_are_within_1e_5_of_the_largest(tiny, method):
    """One step of plain gradient descent shows them: Adam divides small ones away."""
    config = config_for(tiny, method, '--max_steps=2', '--dropout=0.1')
    built, examples = loaded(config)
    members = [Member(seed=0, lr=1e-2), Member(seed=1, lr=1e-3)]
    configs = [sweep.config_of(config, member) for member in members]
    lanes = lanes_lib.make(configs, examples, built.mesh)
    together = Sweep(built, configs, members, lanes, width=0)
    together.start()
    together.update(1)
    moments = together.now.opt_state[1][0].mu  # after one update: 0.1 times the (clipped) gradient
    for i, mine in enumerate(configs):
        one = model.setup(mine)
        fed = feed.from_examples(mine, examples, one.mesh)
        rate = optimizer.schedule(mine.optim, fed.steps)
        tx = optimizer.make(mine.optim, rate)
        update = step.make_update(one.plan, one.forward, tx, rate, step.has_dropout(one.plan))
        key = jax.random.key_data(jax.random.key(mine.optim.seed))
        start = step.TrainState(one.state.params, tx.init(one.state.params), jnp.int32(0), key)
        now, _ = jax.jit(update)(start, one.state.consts, one.params, fed.at(0).arrays)
        alone_moments = now.opt_state[1][0].mu
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(alone_moments))
        assert largest > 0
        for ours, theirs in zip(
            jax.tree.leaves(moments), jax.tree.leaves(alone_moments), strict=True
        ):
            np.testing.assert_allclose(ours[i], theirs, rtol=0, atol=1e-5 * largest)


def compiled_update(tiny, method, count, width):
    config = config_for(tiny, method, '--max_steps=2')
    built, examples = loaded(config)
    members = [Member(lr=1e-3 * (i + 1), seed=0) for i in range(count)]
    configs = [sweep.config_of(config, member) for member in members]
    lanes = lanes_lib.make(configs, examples, built.mesh)
    one = Sweep(built, configs, members, lanes, width)
    one.start()
    args = (one.now, one.consts, one.numbers, one.built.params, one.fed.arrays)
    stats = one.programs.update.lower(*args).compile().memory_analysis()
    own = sum(x.nbytes for x in jax.tree.leaves((one.now, one.consts, one.numbers)))
    return stats, own, sum(x.nbytes for x in jax.tree.leaves(built.params))


@pytest.mark.parametrize('method', ['lora', 'hira'])
def test_the_base_is_held_once(tiny, method):
    """Arguments grow by the adapters and moments alone; temporaries, one by one, not at all."""
    found = {count: compiled_update(tiny, method, count, width=1) for count in (2, 8)}
    (two, own_two, base), (eight, own_eight, _) = found[2], found[8]
    more = eight.argument_size_in_bytes - two.argument_size_in_bytes
    assert more == own_eight - own_two  # six adapters with their moments, and nothing of the base
    assert own_eight == 4 * own_two
    assert base > own_two / 2  # a second copy would be seen
    grown = eight.temp_size_in_bytes - two.temp_size_in_bytes
    assert grown < own_eight - own_two + base / 4


def test_all_at_once_no_copy_of_the_base_is_made_either(tiny):
    """What is mapped are activations: the program with all members has no [K, *kernel] array."""
    config = config_for(tiny, 'lora', '--max_steps=2')
    built, examples = loaded(config)
    members = [Member(lr=1e-3 * (i + 1)) for i in range(3)]
    configs = [sweep.config_of(config, member) for member in members]
    lanes = lanes_lib.make(configs, examples, built.mesh)
    one = Sweep(built, configs, members, lanes, 0)
    one.start()
    args = (one.now, one.consts, one.numbers, one.built.params, one.fed.arrays)
    text = one.programs.update.lower(*args).as_text()
    layers, n, m = jax.tree.leaves(built.params['transformer']['h']['mlp']['c_fc']['kernel'])[0].shape
    assert f'tensor<{layers}x{n}x{m}xf32>' in text
    assert f'tensor<3x{layers}x{n}x{m}xf32>' not in text
    assert f'tensor<{layers}x3x{n}x{m}xf32>' not in text
