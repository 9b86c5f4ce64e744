"""What prompts begin with, once a packed row: the same losses, gradients, rows and counts."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import models
from jaxpeft.models import attention, kernels
from tests import models_tiny, toys, train_tiny
from train import feed, mesh, model, packing, shapes, sharing
from train import loss as losses
from train.batching import Batcher
from train.encoding import Example
from train.packing import Shape

PREFIX = np.arange(20, 32, dtype=np.int32)
WIDTH = 64


def examples(count=24, seed=0, alike=5, longest=36):
    """Of six, `alike` begin with PREFIX; the others with the end of it, as truncated ones do."""
    rng, found = np.random.default_rng(seed), []
    for row in range(count):
        own = rng.integers(1, 20, int(rng.integers(3, longest - len(PREFIX)))).astype(np.int32)
        tokens = np.concatenate([PREFIX if row % 6 < alike else PREFIX[7:], own])
        labelled = np.arange(len(tokens)) >= len(tokens) - int(rng.integers(1, 3))
        found.append(Example(tokens, labelled, 500 + row))
    return found


def unfold(batch):
    """(tokens, positions, labelled) of every example of a micro-batch, what it shares put back."""
    where = batch['select'][batch['weights'] > 0] + 1
    assert (batch['tokens'].ravel()[where] == batch['labels'][batch['weights'] > 0]).all()
    marked = np.zeros(batch['tokens'].size, bool)
    marked[where] = True
    marked = marked.reshape(batch['tokens'].shape)
    shared = batch.get('shared', np.zeros(len(marked), np.int32))
    for row, seg in enumerate(batch['segment_ids']):
        front = np.arange(len(seg)) < shared[row]
        np.testing.assert_array_equal(seg == attention.EVERYONE, front)
        for number in range(1, seg.max() + 1):
            (at,) = np.nonzero(front | (seg == number))
            yield batch['tokens'][row, at], batch['positions'][row, at], marked[row, at]


def same(batch, chosen):
    found = list(unfold(batch))
    for tokens, positions, _ in found:
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    key = lambda pair: (pair[0].tolist(), pair[1].tolist())
    got = sorted(key((tokens, labelled)) for tokens, _, labelled in found)
    assert got == sorted(key((e.tokens, e.labelled)) for e in chosen)


def test_the_layout_by_hand():
    tokens = lambda *own: np.array([7, 8, 9, *own], np.int32)
    last = lambda x: np.arange(len(x)) == len(x) - 1
    rows = [tokens(1, 2), tokens(3, 4, 5), np.array([6, 5, 4, 3, 2, 1], np.int32)]
    chosen = [Example(x, last(x), i) for i, x in enumerate(rows)]
    batch = packing.fill(chosen, Shape(3, 8, 4, 3), True, np.array([7, 8, 9, 50], np.int32))
    assert batch['tokens'].tolist() == [
        [7, 8, 9, 3, 4, 5, 1, 2],
        [6, 5, 4, 3, 2, 1, 0, 0],
        [0] * 8,
    ]
    assert batch['segment_ids'].tolist() == [
        [-1, -1, -1, 2, 2, 2, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [0] * 8,
    ]
    assert batch['positions'].tolist() == [
        [0, 1, 2, 3, 4, 5, 3, 4],
        [0, 1, 2, 3, 4, 5, 0, 0],
        [0] * 8,
    ]
    assert batch['shared'].tolist() == [3, 0, 0]
    assert batch['select'].tolist() == [6, 4, 12, 0]
    assert batch['labels'].tolist() == [2, 5, 1, 0]
    assert batch['weights'].tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match='share 5 tokens, got 4'):
        packing.fill(chosen, Shape(3, 8, 4, 5), True, np.arange(4, dtype=np.int32))
    with pytest.raises(ValueError, match='do not fit'):
        packing.fill(chosen, Shape(1, 8, 4, 3), True, np.array([7, 8, 9], np.int32))


def test_the_first_label_is_predicted_by_a_token_of_the_examples_own():
    tokens = np.arange(6, dtype=np.int32)
    for first in range(1, 6):
        example = Example(tokens, np.arange(6) >= first, 0)
        assert packing.common(example, tokens) == first - 1
        assert packing.common(example, tokens[:2]) == min(first - 1, 2)
    assert packing.common(Example(tokens, np.arange(6) >= 4, 0), np.array([0, 1, 9, 9])) == 2


@pytest.mark.parametrize('alike', [6, 5, 4])
def test_updates_hold_their_examples_and_nothing_else_changes(alike):
    rows = examples(50, alike=alike)
    settings = {'batch': 6, 'seed': 3, 'max_length': 48, 'grad_acc': 2, 'epochs': 2.5}
    plain, shared = Batcher(rows, **settings), Batcher(rows, **settings, prefix=PREFIX)
    assert plain.shape.shared == 0
    assert shared.shape.shared == len(PREFIX)
    assert shared.shape.rows * shared.shape.width < plain.shape.rows * plain.shape.width
    arrays = set()
    for step in range(plain.steps):
        batch, before = shared.at(step), plain.at(step)
        arrays.add(tuple((n, a.shape, str(a.dtype)) for n, a in sorted(batch.items())))
        assert set(batch) == set(before) | {'shared'}
        np.testing.assert_array_equal(batch['rows'], before['rows'])
        assert shared.tokens(step) == plain.tokens(step) == (before['segment_ids'] != 0).sum()
        for g in range(2):
            micro = {name: x[g] for name, x in batch.items()}
            same(micro, [rows[i] for i in shared.indices(step)[g]])
    assert len(arrays) == 1
    resumed = Batcher(rows, **settings, prefix=PREFIX).at(4)  # a function of the step alone
    for name, array in shared.at(4).items():
        np.testing.assert_array_equal(resumed[name], array)
    held = list(shared.eval_batches())
    assert np.concatenate([b['rows'] for b in held])[:50].tolist() == [e.row for e in rows]
    for k, batch in enumerate(held):
        same(batch, rows[6 * k : 6 * k + 6])


def test_occupancy_counts_shared_tokens_once_a_row():
    batcher = Batcher(examples(48), 8, max_length=48, prefix=PREFIX)
    assert batcher.shape.shared
    seen = [batcher.at(step)['segment_ids'] != 0 for step in range(6)]
    assert np.mean(seen) == pytest.approx(batcher.occupancy)


def test_examples_that_share_nothing_are_laid_out_as_ever():
    rng = np.random.default_rng(0)
    rows = []
    for row in range(30):
        tokens = rng.integers(0, 50, int(rng.integers(12, 30))).astype(np.int32)
        rows.append(Example(tokens, np.arange(len(tokens)) > 10, row))
    assert not len(sharing.common_prefix(rows))
    plain = Batcher(rows, 6)
    for prefix in (sharing.common_prefix(rows), np.full(12, 60, np.int32)):
        other = Batcher(rows, 6, prefix=prefix)
        assert other.shape == plain.shape
        for step in range(plain.steps):
            batch, before = other.at(step), plain.at(step)
            assert batch.keys() == before.keys()
            for name in before:
                np.testing.assert_array_equal(batch[name], before[name])


def test_the_common_prefix_is_that_of_half_of_the_examples_and_ends_before_labels():
    own = sharing.common_prefix(examples(60, alike=6))
    np.testing.assert_array_equal(own[: len(PREFIX)], PREFIX)
    np.testing.assert_array_equal(sharing.common_prefix(examples(60, alike=4))[:12], PREFIX)
    assert not len(sharing.common_prefix(examples(60, alike=2)))
    labelled = [e._replace(labelled=np.arange(len(e.tokens)) > 0) for e in examples(12)]
    assert not len(sharing.common_prefix(labelled))  # --train_on_inputs
    early = [e._replace(labelled=np.arange(len(e.tokens)) > 9) for e in examples(12, alike=6)]
    np.testing.assert_array_equal(sharing.common_prefix(early), PREFIX[:9])


def test_a_longer_prefix_of_fewer_examples_is_weighed_against_a_shorter_one_of_all():
    common = np.array([9] * 8 + [12] * 4 + [20] * 4 + [3])
    assert packing.depths(common) == [9, 12, 20]  # 144, 96, 80 tokens
    assert packing.depths(np.array([7, 7, 0])) == []
    last = lambda n: np.arange(n) == n - 1
    longer = np.arange(60, 80, dtype=np.int32)
    tokens = [np.concatenate([longer[: 10 + 10 * (i % 4 == 0)], np.full(12, i)]) for i in range(16)]
    rows = [Example(x.astype(np.int32), last(len(x)), i) for i, x in enumerate(tokens)]
    assert Batcher(rows, 8, max_length=64, prefix=longer).shape.shared == 10
    assert packing.depths(Batcher(rows, 8, prefix=longer)._shared) == [10, 20]


@pytest.mark.parametrize('even', [None, 40, 400])
def test_the_shape_is_the_cheapest_of_all_that_fit(even, monkeypatch):
    rows = examples(40, seed=1)
    settings = {'max_length': 48, 'epochs': 3, 'prefix': PREFIX, 'even': even}
    monkeypatch.setattr(shapes, 'FULLEST', 2)  # so that the finalists are not all of them
    batcher = Batcher(rows, 6, **settings)

    def fits(shape):
        batcher.shape = shape
        try:
            for step in range(batcher.steps):
                batcher.at(step)
        except ValueError:
            return False
        return True

    chosen, best = batcher.shape, np.inf
    assert fits(chosen)
    longest = max(len(e.tokens) for e in rows)
    cost = lambda r, t: r * t * (1 + t / even if even else 1)
    for width in range(packing.round_up(longest, 8), (72 if even else 48) + 1, 8):
        for shared in (0, len(PREFIX)):
            row = next(r for r in range(1, 7) if fits(Shape(r, width, chosen.labels, shared)))
            if width <= 48 or row * width**2 <= 6 * 48**2:
                best = min(best, cost(row, width))
    assert cost(chosen.rows, chosen.width) == pytest.approx(best)


def test_rows_wider_than_max_length_never_attend_more_than_one_row_an_example():
    last = np.arange(40) > 38
    rows = [Example(np.full(40, i, np.int32), last, i) for i in range(12)]
    full = Batcher(rows, 6, max_length=40, even=10**6).shape
    assert (full.rows, full.width) == (6, 40)  # as the preflight says
    half = [e._replace(tokens=e.tokens[:29], labelled=last[-29:]) for e in rows]
    wide = Batcher(half, 6, max_length=40, even=10**6).shape
    assert (wide.rows, wide.width) == (6, 32)  # 3 x 64 is no less
    short = [e._replace(tokens=e.tokens[:28], labelled=last[-28:]) for e in rows]
    assert Batcher(short, 6, max_length=40, even=10**6).shape[:2] == (3, 56)
    assert Batcher(short, 6, max_length=40, even=30).shape[:2] == (6, 32)


def test_shared_tokens_see_one_another_in_order_and_are_seen_by_all_but_padding():
    seg = jnp.array([[-1, -1, 1, 1, 2, 0]])
    pos = jnp.array([[0, 1, 2, 3, 2, 0]])
    mask = np.asarray(attention.visible(pos, pos, seg, seg, None))[0].astype(int)
    assert mask.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert packing.EVERYONE == attention.EVERYONE


def batch_of(rows, packed, prefix=packing.NOTHING):
    """One update of 8 examples, packed and shared or one to a row, in arrays of one shape."""
    batcher = Batcher(rows, 8, 0, packed, WIDTH, prefix=prefix)
    shared = len(prefix)
    batcher.shape = Shape(8, WIDTH, 32, shared)
    batch = {name: jnp.asarray(x[0]) for name, x in batcher.at(1).items() if name != 'rows'}
    if shared:
        assert set(np.asarray(batch.pop('shared'))) == {0, shared}
        used = (batch['segment_ids'] != 0).any(axis=1).sum()
        assert used < 6
        assert batch['segment_ids'].max() > 1
    return batch


@functools.cache
def base(kind, window):
    changes = {'max_position_embeddings': 48}
    if kind == 'gpt_neo':
        changes |= {'num_layers': 2, 'attention_types': [[['global', 'local'], 1]]}
        changes['window_size'] = window
    made = models.build(models_tiny.config(kind, **changes))
    return made, jax.tree.map(jnp.asarray, models_tiny.random_params(made))


def both(kind, method, window=40, options=None):
    """(loss, gradients) with a shared prefix and of one example a row."""
    made, params = base(kind, window)
    plan = jp.compose(made, params, method, options={method: options} if options else None)
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.3)
    forward = jp.bind(plan, made.apply)

    @models_tiny.jit
    def run(trained, batch):
        def mean(trained):
            total, count = losses.lm_loss(forward, jp.State(trained, state.consts), params, batch)
            return total / count

        return jax.value_and_grad(mean)(trained)

    rows = examples()
    return run(state.params, batch_of(rows, True, PREFIX)), run(state.params, batch_of(rows, False))


def far(pair):
    """The largest differences of loss and gradients, the latter in parts of the largest."""
    (loss, grads), (want, wanted) = pair
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert largest > 1e-4
    apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), grads, wanted)
    return abs(float(loss / want) - 1), max(jax.tree.leaves(apart)) / largest


RANKS = {'rank': 4}
EXACT = [n for n in jp.methods.names() if not hasattr(jp.methods.module(n), 'WHOLE_EXAMPLES')]


@pytest.mark.parametrize('method', EXACT)
def test_loss_and_gradients_of_every_method_that_may_share(method):
    options = RANKS if 'rank' in jp.methods.options(method) else None
    loss, grads = far(both('gpt_neo', method, options=options))
    assert loss < 1e-5
    assert grads < 1e-5


@pytest.mark.parametrize('method', ['lora', 'knowhira'])
def test_loss_and_gradients_of_a_llama(method):
    loss, grads = far(both('llama', method, options=RANKS))
    assert loss < 1e-5
    assert grads < 1e-5


def test_a_narrow_window_would_be_wrong_and_two_methods_say_no():
    assert far(both('gpt_neo', 'lora', window=6, options=RANKS))[1] > 1e-3
    assert {n for n in jp.methods.names() if n not in EXACT} == {'s2', 'hylorada_v2'}


def test_only_rows_without_shared_tokens_are_promised_to_be_runs():
    seen = []

    def forward(state, variables, tokens, *, packed, **kwargs):
        seen.append(packed)
        return jnp.zeros(4)

    batch = {'tokens': 0, 'positions': 0, 'segment_ids': 0, 'select': 0, 'labels': 0}
    batch['weights'] = jnp.ones(4)
    losses.lm_loss(forward, jp.State({}, {}), {}, batch)
    losses.lm_loss(forward, jp.State({}, {}), {}, batch | {'shared': 0})
    assert seen == [True, False]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The tiny model with windows as wide as its examples."""
    folder = train_tiny.write_all(tmp_path_factory.mktemp('sharing'))
    file = folder / 'model' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'window_size': 48}))
    return folder


@pytest.mark.parametrize(
    ('flags', 'reason'),
    [
        ((), ''),
        (('--no_share_prefix',), 'switched off'),
        (('--no_packing',), 'switched off'),
        (('--method=hylorada_v2',), 'hylorada_v2 reads the row'),
        (('--method=lora+s2',), 's2 reads the row'),
        (('--method=hylorada+sparse_mlp+daa',), ''),
    ],
)
def test_what_stands_against_sharing(folder, flags, reason):
    config, devices = train_tiny.config(folder, *flags), mesh.make('1,1,1')
    base = models.load(folder / 'model')[0].config
    got = sharing.refusal(config, base, examples(), devices)
    assert got == reason or (reason and reason in got)
    longest = max(len(e.tokens) for e in examples())
    narrow = dataclasses.replace(base, windows=(None, longest))
    assert sharing.refusal(config, narrow, examples(), devices) == got
    narrow = dataclasses.replace(base, windows=(None, longest - 1))
    got = sharing.refusal(config, narrow, examples(), devices)
    assert (reason or f'layers see {longest - 1} tokens, an example has {longest}') in got


def test_a_platforms_kernel_comes_first(folder, monkeypatch):
    config, devices = train_tiny.config(folder, '--max_length=128'), mesh.make('1,1,1')
    base = models.load(folder / 'model')[0].config
    monkeypatch.setattr(kernels, 'platform', lambda: 'tpu')
    assert 'kernel splash' in sharing.refusal(config, base, examples(), devices)
    plain = train_tiny.config(folder, '--max_length=128', '--attention=plain')
    assert sharing.refusal(plain, base, examples(), devices) == ''
    monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')  # has none for packed rows
    monkeypatch.setattr(kernels, '_gpu_refuses', lambda config, length: '')
    half = train_tiny.config(folder, '--max_length=128', '--dtype=bfloat16')
    assert sharing.refusal(half, base, examples(), devices) == ''


def test_a_run_shares_by_itself_and_counts_the_examples_tokens(folder):
    given, notes = {}, []
    for flag in ('--share_prefix', '--no_share_prefix'):
        config = train_tiny.config(folder, '--mesh=1,1,1', flag)
        built = model.setup(config, fresh=False)
        given[flag] = feed.make(config, built.tokenizer, built.mesh, say=notes.append)
    once, each = given.values()
    shared = once.batcher.shape.shared
    assert shared > 12
    assert each.batcher.shape.shared == 0
    assert f'the {shared} tokens that prompts begin with stand once a row' in notes[0]
    assert 'once a row' not in notes[1]
    assert once.validation[0]['shared'].max() == shared
    size = lambda fed: fed.arrays['tokens'].size
    for step in range(3):
        mine, other = once.at(step), each.at(step)
        np.testing.assert_array_equal(mine.rows, other.rows)
        assert mine.tokens == other.tokens == int((other.arrays['segment_ids'] != 0).sum())
        assert size(mine) < 0.7 * size(other)
