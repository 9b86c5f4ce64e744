"""K runs as one program: the numbers of runs alone, the base held once, pruning, checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import train_tiny
from train import feed, loop, model, optimizer, options, step, sweep
from train.stop import Stop
from train.sweep import lanes as lanes_lib
from train.sweep import members as members_lib
from train.sweep.loop import Sweep

Member = sweep.Member


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


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
}


@pytest.mark.parametrize(('method', 'own'), [('lora', True), ('knowhira', False)])
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
    outcome = sweep.train(config, built, examples, members, width=width, threads=1 if own else 2)
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
            mine, theirs = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(one)])
                for one in (run.state, state)
            )
            assert np.linalg.norm(mine - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize('method', ['kasa', 'hylorada', 'full'])
def test_the_other_methods_too(tiny, method):
    config = config_for(tiny, 'lora', '--max_steps=3', '--eval_strategy=no')
    own = {'rank': 4} if method != 'full' else {}
    given = {method: options.settable(method) | own}
    adapter = dataclasses.replace(config.adapter, method=method)
    config = dataclasses.replace(config, adapter=adapter, options=given)
    built, examples = loaded(config)
    cases = zip((1e-2, 1e-3), CASES.get(method, ({}, {}))[:2], strict=True)
    members = [Member(lr=rate, options=chosen) for rate, chosen in cases]
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
    for i, mine in enumerate(configs[1:], 1):
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
    stats = one.programs.jitted.lower(*args).compile().memory_analysis()
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
    text = one.programs.jitted.lower(*args).as_text()
    layers, n, m = jax.tree.leaves(built.params['transformer']['h']['mlp']['c_fc']['kernel'])[
        0
    ].shape
    assert f'tensor<{layers}x{n}x{m}xf32>' in text
    assert f'tensor<3x{layers}x{n}x{m}xf32>' not in text
    assert f'tensor<{layers}x3x{n}x{m}xf32>' not in text


def dropping(config, built, examples, members, pruned, **more):
    """A sweep that drops `pruned[step]` at its validations; the outcome and what was looked at."""
    looks = []

    def judge(look):
        looks.append(look)
        return pruned.get(look.step)

    return sweep.train(config, built, examples, members, on_eval=judge, **more), looks


def test_pruned_members_end_and_the_others_do_not_notice(tiny):
    """Three of four are dropped, so the survivor is gathered into a smaller program."""
    config = config_for(tiny, 'lora', '--max_steps=8', '--eval_steps=2')
    built, examples = loaded(config)
    members = [Member(seed=i, lr=1e-2) for i in range(4)]
    whole = sweep.train(config, built, examples, members)
    steps = []
    cut, looks = dropping(
        config, built, examples, members, {2: [3], 4: [0, 1]},
        on_step=lambda number, losses: steps.append((number, sorted(losses))),
    )  # fmt: skip
    assert [sorted(look.losses) for look in looks] == [[0, 1, 2, 3], [0, 1, 2], [2], [2]]
    assert steps[0] == (1, [0, 1, 2, 3])
    assert steps[-1] == (8, [2])
    assert [run.why for run in cut.runs] == [
        'pruned after step 4', 'pruned after step 4', '', 'pruned after step 2',
    ]  # fmt: skip
    for mine, theirs, made in zip(cut.runs, whole.runs, (4, 4, 8, 2), strict=True):
        assert mine.ledger.step == len(mine.losses) == made
        np.testing.assert_allclose(mine.losses, theirs.losses[:made], rtol=1e-5)
    best = {run.ledger.best_step: run for run in whole.runs}
    assert best
    for mine, theirs in zip(cut.runs, whole.runs, strict=True):
        if mine.ledger.best_step == theirs.ledger.best_step:
            for x, y in zip(
                jax.tree.leaves(mine.state), jax.tree.leaves(theirs.state), strict=True
            ):
                np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match='no member has the number 9: there are 4'):
        dropping(config, built, examples, members, {2: [9]})


def test_a_member_that_diverges_ends_alone(tiny):
    """Its own batch and clip are its own, so its NaN reaches nobody."""
    config = config_for(tiny, 'lora', '--max_steps=6', '--eval_steps=3', '--max_grad_norm=0')
    built, examples = loaded(config)
    wild = [Member(lr=1e-2), Member(lr=1e30)]
    run, bad = sweep.train(config, built, examples, wild).runs
    assert 'is not finite' in bad.why
    assert bad.ledger.step < 6
    assert np.isfinite(bad.losses).all()
    assert run.why == ''
    (calm,) = sweep.train(config, built, examples, wild[:1]).runs
    np.testing.assert_allclose(run.losses, calm.losses, rtol=1e-5)


def test_the_adapter_is_that_of_the_best_validation(tiny):
    """A rate so large that the loss grows again: early stopping ends it, the best stays."""
    config = config_for(
        tiny, 'lora', '--max_steps=20', '--eval_steps=1', '--early_stop_patience=2',
        '--schedule=constant', '--warmup=0',
    )  # fmt: skip
    built, examples = loaded(config)
    _, wild = sweep.train(config, built, examples, [Member(lr=1e-4), Member(lr=100.0)]).runs
    assert wild.why.startswith('stopped early after step')
    assert wild.ledger.best_loss == min(wild.validation.values())
    assert wild.ledger.step == wild.ledger.best_step + 2
    fed = feed.from_examples(wild.config, examples, built.mesh)
    plan = model.make_plan(wild.config, built.model, built.params)
    forward = model.bound(plan, built.model, built.tokenizer)
    validate = jax.jit(step.make_validate(forward))
    sums = [validate(*wild.state, built.params, batch) for batch in fed.validation]
    loss = sum(float(nll) for nll, _ in sums) / sum(float(weight) for _, weight in sums)
    assert loss == pytest.approx(wild.ledger.best_loss, rel=1e-5)


def test_a_sweep_continues_from_its_checkpoint(tiny, tmp_path):
    """A SIGTERM after a member was dropped and the others were gathered: the same numbers."""
    config = config_for(tiny, 'lora', '--max_steps=9', '--eval_steps=2', '--save_steps=100')
    built, examples = loaded(config)
    members = [Member(seed=i, lr=1e-2) for i in range(3)]
    pruned = {2: [0], 4: [2]}
    whole, _ = dropping(config, built, examples, members, pruned)
    with Stop() as stop:

        def cut(number, losses):
            stop.asked = stop.asked or number == 5

        first, _ = dropping(
            config, built, examples, members, pruned, folder=tmp_path, stop=stop, on_step=cut
        )
        assert not first.finished
        stop.asked = False
        seen = []
        second, _ = dropping(
            config, built, examples, members, pruned, folder=tmp_path, stop=stop,
            on_step=lambda number, losses: seen.append(number),
        )  # fmt: skip
    assert second.finished
    assert seen == [6, 7, 8, 9]
    for mine, theirs in zip(second.runs, whole.runs, strict=True):
        np.testing.assert_array_equal(mine.losses, theirs.losses)
        assert mine.validation == theirs.validation
        assert mine.why == theirs.why
        for x, y in zip(jax.tree.leaves(mine.state), jax.tree.leaves(theirs.state), strict=True):
            np.testing.assert_array_equal(x, y)
    again, _ = dropping(config, built, examples, members, pruned, folder=tmp_path)  # it is done
    np.testing.assert_array_equal(again.runs[1].losses, whole.runs[1].losses)
    with pytest.raises(ValueError, match='a sweep of other members'):
        sweep.train(config, built, examples, members[:2], folder=tmp_path)


def test_what_cannot_train_together_is_refused_and_sorted(tiny):
    config = config_for(tiny, 'knowhira')
    members = [
        Member(options={'rank': 4}),
        Member(options={'rank': 8, 'ortho_lambda': 1e-3}),
        Member(options={'rank': 4, 'knowledge_alpha': 0.1}),
        Member(options={'rank': 4, 'ortho_mode': 'paper'}),
    ]
    assert sweep.groups(config, members) == [[0, 2], [1], [3]]
    configs = [sweep.config_of(config, member) for member in members]
    with pytest.raises(ValueError, match=r'knowhira\.rank is 4, 8 in one sweep.*decides a shape'):
        members_lib.numbers(configs[:2])
    with pytest.raises(ValueError, match=r'knowhira\.ortho_mode is reference, paper'):
        members_lib.numbers([configs[0], configs[3]])
    with pytest.raises(ValueError, match=r"takes no option 'ortho_lamda'.*ortho_lambda"):
        sweep.config_of(config, Member(options={'ortho_lamda': 1.0}))
    with pytest.raises(ValueError, match='at least one member'):
        sweep.train(config, None, [], [])
    with pytest.raises(ValueError, match='--init_from starts one run'):
        sweep.train(config_for(tiny, 'lora', '--init_from=x'), None, [], members)


def test_numbers_hold_what_differs_and_nothing_else(tiny):
    config = config_for(tiny, 'lora', '--lr=1e-3')
    members = [Member(lr=1e-3, options={'lora.alpha': 8.0}), Member(lr=1e-3, options={'alpha': 4})]
    found = members_lib.numbers([sweep.config_of(config, member) for member in members])
    assert found.keys() == {'options'}
    assert found['options']['lora']['alpha'].tolist() == [8.0, 4.0]
    default = Member(options={'alpha': None})  # 2 * rank, and rank is 4
    found = members_lib.numbers([sweep.config_of(config, m) for m in (default, members[1])])
    assert found['options']['lora']['alpha'].tolist() == [8.0, 4.0]
