"""What examples begin with, once a batch: the same losses, gradients, updates and counts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import models
from jaxpeft.models import heads
from jaxpeft.models import spread as spreads
from tests import models_tiny, toys, train_tiny
from train import feed, forest, model, packing, shapes, sharing
from train import loss as losses
from train.batching import Batcher, shared_shapes
from train.encoding import Example

PREFIX = np.arange(20, 32, dtype=np.int32)
WIDTH = 40
EVEN = 10**6  # attention costs nothing: forests wherever they save tokens


def examples(count=24, seed=0, longest=36):
    """Three in six begin with PREFIX, two with that and 9 tokens more, one with the end of it."""
    rng, found = np.random.default_rng(seed), []
    starts = [PREFIX] * 3 + [np.concatenate([PREFIX, np.arange(40, 49)])] * 2 + [PREFIX[7:]]
    for row in range(count):
        start = starts[row % 6]
        own = rng.integers(1, 20, int(rng.integers(3, longest - len(start)))).astype(np.int32)
        tokens = np.concatenate([start, own]).astype(np.int32)
        labelled = np.arange(len(tokens)) >= len(tokens) - int(rng.integers(1, 3))
        found.append(Example(tokens, labelled, 500 + row))
    return found


def predicted(chosen):
    """(text in front, label) of every label of some examples, sorted."""
    pairs = [
        (e.tokens[:t].tolist(), int(e.tokens[t])) for e in chosen for t in np.nonzero(e.labelled)[0]
    ]
    return sorted(pairs)


def unfold(batch):
    """The same of the arrays of a micro-batch, and the texts that attention sees, sorted."""
    g, r, _ = batch['take'].shape
    tokens, positions = batch['tokens'], batch['positions']
    texts, owner = [], {}
    for tree, row in itertools.product(range(g), range(r)):
        seg = batch['segment_ids'][tree, row]
        for number in range(1, seg.max() + 1):
            at = batch['take'][tree, row, seg == number]
            np.testing.assert_array_equal(np.diff(np.nonzero(seg == number)[0]), 1)
            np.testing.assert_array_equal(positions[tree, at], np.arange(len(at)))
            texts.append(tokens[tree, at].tolist())
            owner |= {(tree, int(p)): texts[-1][: n + 1] for n, p in enumerate(at)}
    for (tree, p), text in owner.items():  # attention's result is that of a copy
        assert batch['take'][tree].ravel()[batch['back'][tree, p]] == p
        assert text[-1] == tokens[tree, p]
    real = batch['weights'] > 0
    where = [divmod(int(s), tokens.shape[1]) for s in batch['select'][real]]
    found = [
        (owner[at], int(label)) for at, label in zip(where, batch['labels'][real], strict=True)
    ]
    return sorted(found), sorted(texts)


def forest_size(chosen):
    """Distinct beginnings, the empty one left out: what a prefix tree of them holds."""
    texts = [e.tokens[: forest.needed(e)].tolist() for e in chosen]
    return len({tuple(text[: n + 1]) for text in texts for n in range(len(text))})


def test_the_layout_by_hand():
    tokens = lambda *own: np.array([7, 8, *own], np.int32)
    last = lambda x: np.arange(len(x)) >= len(x) - 1
    rows = [tokens(4, 5, 6), tokens(4, 1, 2, 3), np.array([9, 9, 3], np.int32)]
    chosen = [Example(x, last(x), i) for i, x in enumerate(rows)]
    places = forest.place(forest.Texts(chosen), np.arange(3)[None], 1, 6)
    assert (places.tokens[0], places.rows[0]) == (8, 2)
    batch = forest.fill(chosen, places, forest.Shape(1, 10, 2, 6, 4))
    assert batch['tokens'].tolist() == [[7, 8, 4, 1, 2, 5, 9, 9, 0, 0]]
    assert batch['positions'].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 0, 0]]
    assert batch['take'].tolist() == [[[0, 1, 2, 3, 4, 0], [0, 1, 2, 5, 6, 7]]]
    assert batch['segment_ids'].tolist() == [[[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 2, 2]]]
    assert batch['back'].tolist() == [[0, 1, 2, 3, 4, 9, 10, 11, 0, 0]]
    assert batch['select'].tolist() == [4, 5, 7, 0]
    assert batch['labels'].tolist() == [3, 6, 3, 0]
    assert batch['weights'].tolist() == [1, 1, 1, 0]
    for shape in [(1, 7, 2, 6, 4), (1, 8, 1, 6, 4), (1, 8, 2, 4, 4), (1, 8, 2, 6, 2)]:
        with pytest.raises(ValueError, match=r'3 examples do not fit .* need 8 tokens and 2 rows'):
            forest.fill(chosen, places, forest.Shape(*shape))


def test_what_any_two_have_in_common():
    rows = examples(40, seed=3)
    texts = forest.Texts(rows)
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.integers(0, 40, (200, 7)), np.full((200, 1), -1)], axis=1)
    order = texts.sorted(chosen)
    chosen = np.take_along_axis(chosen, order, axis=1)
    common = texts.common(chosen)
    assert (chosen[:, -1] == -1).all()
    assert (common[:, [0, -1]] == 0).all()
    for line, got in zip(chosen[:, :-1], common[:, 1:-1], strict=True):
        pairs = [[rows[i].tokens[: forest.needed(rows[i])].tolist() for i in line]]
        for a, b, n in zip(pairs[0], pairs[0][1:], got, strict=False):
            same = [x == y for x, y in zip(a, b, strict=False)]
            assert a <= b
            assert n == (same.index(False) if False in same else len(same))


@pytest.mark.parametrize('trees', [1, 3, 8])
def test_trees_hold_each_beginning_once_and_are_even(trees):
    rows = examples(60, seed=2)
    chosen = np.random.default_rng(1).permutation(60).reshape(10, 6)
    places = forest.place(forest.Texts(rows), chosen, trees, WIDTH)
    for m, line in enumerate(chosen):
        ordered = [rows[i] for i in line[places.order[m]]]
        cuts = itertools.combinations_with_replacement(range(7), trees - 1)
        parts = ([ordered[a:b] for a, b in itertools.pairwise((0, *cut, 6))] for cut in cuts)
        assert places.tokens[m] == min(max(map(forest_size, part)) for part in parts)
        assert places.tree[m].max() < trees
    shape = forest.Shape(trees, int(places.tokens.max()), int(places.rows.max()), WIDTH, 16)
    for m, line in enumerate(chosen):
        mine = [rows[i] for i in line]
        batch = forest.fill(mine, places, shape, m)
        found, texts = unfold(batch)
        assert found == predicted(mine)
        assert texts == sorted(e.tokens[: forest.needed(e)].tolist() for e in mine)


@pytest.mark.parametrize('multiple', [1, 2])
def test_updates_hold_their_examples_and_nothing_else_changes(multiple):
    rows = examples(50)
    settings = {'batch': 6, 'seed': 3, 'max_length': 48, 'grad_acc': 2, 'epochs': 2.5}
    settings |= {'row_multiple': multiple, 'even': EVEN}
    plain, shared = Batcher(rows, **settings), Batcher(rows, **settings, share=True)
    assert not plain.forests
    assert shared.forests == shared.shapes
    assert shared.shape.trees == multiple
    assert multiple * shared.shape.tokens < plain.shape.rows * plain.shape.width
    for step in range(plain.steps):
        batch, before = shared.at(step), plain.at(step)
        np.testing.assert_array_equal(batch['rows'], before['rows'])
        assert shared.tokens(step) == plain.tokens(step) == (before['segment_ids'] != 0).sum()
        for g in range(2):
            micro = {name: x[g] for name, x in batch.items()}
            assert unfold(micro)[0] == predicted([rows[i] for i in shared.indices(step)[g]])
    resumed = Batcher(rows, **settings, share=True).at(4)  # a function of the step alone
    for name, array in shared.at(4).items():
        np.testing.assert_array_equal(resumed[name], array)
    held = list(shared.eval_batches())
    assert np.concatenate([b['rows'] for b in held])[:50].tolist() == [e.row for e in rows]
    assert {b['tokens'].shape for b in held} == {held[0]['tokens'].shape}
    for k, batch in enumerate(held):
        assert unfold(batch)[0] == predicted(rows[6 * k : 6 * k + 6])


def test_an_update_takes_the_smallest_shape_that_it_fits():
    rows, settings = examples(300, seed=5), {'max_length': 48, 'even': EVEN, 'share': True}
    batcher = Batcher(rows, 4, epochs=4, **settings)
    sizes = [shape.tokens for shape in batcher.shapes]
    assert len(sizes) == 3
    assert sizes == sorted(set(sizes))
    used, most = [], [0, 0, 0]
    for step in range(batcher.steps):
        need = forest_size([rows[i] for i in batcher.indices(step).ravel()])
        k, batch = batcher.fits(step), batcher.at(step)
        size = batch['tokens'].shape[-1]
        assert size == sizes[k] == min(s for s in sizes if s >= need)
        assert batch['take'].shape[-2] == batcher.shapes[k].rows
        assert batcher.at(step, least=1)['tokens'].shape[-1] == sizes[max(k, 1)]
        used.append(need / size)
        most[k] = max(most[k], int((batch['segment_ids'] > 0).any(axis=(0, 1, 3)).sum()))
    assert np.mean(used) == pytest.approx(batcher.occupancy, abs=0.01)
    # Attention's rows are those that trees of up to so many tokens need.
    assert [shape.rows for shape in batcher.shapes] == np.maximum.accumulate(most).tolist()
    # No time to earn a compilation, and more than is asked for.
    assert len(Batcher(rows, 4, steps=8, **settings).shapes) == 1
    assert len(Batcher(rows, 4, epochs=60, **settings).shapes) == shapes.PROGRAMS
    others = [Batcher(rows, 4, seed=s, epochs=4, **settings) for s in (1, 2)]
    together, evaluated = shared_shapes(others)
    for one in others:
        one.shapes = together
        assert {one.at(s)['tokens'].shape[-1] for s in range(40)} <= {s.tokens for s in together}
    assert next(others[0].eval_batches(evaluated))['tokens'].shape == (1, evaluated.tokens)


def test_a_shape_has_the_rows_that_its_updates_need():
    tokens, rows = np.array([16] * 60 + [32] * 60), np.array([2] * 59 + [3] + [5] * 60)
    needs = shapes.Needs(tokens, rows, 4, 8)
    found = shapes.forest_shapes(needs, row_multiple=1, even=EVEN, programs=2)
    assert [(shape.tokens, shape.rows) for shape in found] == [(16, 3), (32, 5)]


def test_an_update_with_too_many_rows_for_its_tokens_takes_a_larger_shape():
    """Shapes that several runs share are made for each update's most tokens and most rows."""
    rows = examples(300, seed=5)
    batcher = Batcher(rows, 4, epochs=4, max_length=48, even=EVEN, share=True)
    small, *larger = batcher.shapes
    step = next(s for s in range(batcher.steps) if batcher.fits(s) == 0)
    used = int((batcher.at(step)['segment_ids'] > 0).any(axis=-1).sum())
    batcher.shapes = (small._replace(rows=used - 1), *larger)
    assert batcher.fits(step) == 1
    assert batcher.at(step)['tokens'].shape[-1] == larger[0].tokens


def given(tokens, sizes):
    """Places of all updates, each in the smallest size that holds it."""
    return sum(min(s for s in sizes if s >= t) for t in tokens.tolist())


def test_sizes_leave_the_least_unused():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = 8 * rng.integers(1, 12, 400)
        values = sorted(set(tokens.tolist()))
        for programs in (1, 2, 3):
            every = itertools.combinations(values[:-1], programs - 1)
            least = min(given(tokens, (*few, values[-1])) for few in every)
            assert given(tokens, shapes._sizes(tokens, 0.0, programs)) == least
    assert shapes._sizes(tokens, 10.0**9, 3) == [max(tokens)]


def test_examples_that_share_nothing_and_fill_their_rows_are_laid_out_as_ever():
    rng = np.random.default_rng(0)
    rows = []
    for row in range(30):
        tokens = rng.integers(0, 5000, 40).astype(np.int32)
        rows.append(Example(tokens, np.arange(40) > 10, row))
    plain, other = (Batcher(rows, 6, max_length=40, even=EVEN, share=s) for s in (False, True))
    assert other.shape == plain.shape
    assert not other.forests
    for step in range(plain.steps):
        batch, before = other.at(step), plain.at(step)
        assert batch.keys() == before.keys()
        for name in before:
            np.testing.assert_array_equal(batch[name], before[name])


@pytest.mark.parametrize('even', [None, 40, 400])
def test_the_shape_of_rows_is_the_cheapest_of_all_that_fit(even, monkeypatch):
    rows = examples(40, seed=1)
    monkeypatch.setattr(shapes, 'FULLEST', 2)  # so that the finalists are not all of them
    batcher = Batcher(rows, 6, max_length=48, epochs=3, even=even)

    def fits(shape):
        batcher.shapes = (shape,)
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
        row = next(r for r in range(1, 7) if fits(packing.Shape(r, width, chosen.labels)))
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


def batch_of(rows, share):
    """One update of 8 examples, in a forest of two trees or one to a row."""
    batcher = Batcher(rows, 8, 0, share, WIDTH, row_multiple=2, even=EVEN, share=share)
    batch = {name: jnp.asarray(x[0]) for name, x in batcher.at(1).items() if name != 'rows'}
    assert ('take' in batch) == share
    return batch


@functools.cache
def base(kind, window):
    changes = {'max_position_embeddings': 48}
    if kind == 'gpt_neo':
        changes |= {'num_layers': 2, 'attention_types': [[['global', 'local'], 1]]}
        changes['window_size'] = window
    made = models.build(models_tiny.config(kind, **changes))
    return made, jax.tree.map(jnp.asarray, models_tiny.random_params(made))


def both(kind, method, window=6, options=None, rows=None):
    """(loss, gradients) in a forest and of one example a row."""
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

    rows = rows or examples()
    return run(state.params, batch_of(rows, True)), run(state.params, batch_of(rows, False))


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
    assert grads < 3e-5  # of `full`, whose embedding sums over all examples


@pytest.mark.parametrize('method', ['lora', 'knowhira'])
def test_loss_and_gradients_of_a_llama(method):
    loss, grads = far(both('llama', method, options=RANKS))
    assert loss < 1e-5
    assert grads < 1e-5


def test_labels_in_what_examples_share():
    """--train_on_inputs: a token that stands once predicts the next one of each of its examples."""
    rows = [e._replace(labelled=np.arange(len(e.tokens)) > 0) for e in examples()]
    rows += [rows[8]._replace(row=900), rows[8]._replace(tokens=rows[8].tokens[:9], row=901)]
    rows[-1] = rows[-1]._replace(labelled=rows[-1].labelled[:9])
    loss, grads = far(both('gpt_neo', 'lora', options=RANKS, rows=rows))
    assert loss < 1e-5
    assert grads < 1e-5


def test_methods_that_read_the_row_say_no():
    assert {n for n in jp.methods.names() if n not in EXACT} == {'s2', 'hylorada_v2'}


def test_a_spread_of_other_shapes_is_refused():
    made, params = base('llama', 6)
    ids = jnp.zeros((1, 5), jnp.int32)
    spread = spreads.Spread(jnp.zeros((1, 2, 4), jnp.int32), ids)
    call = functools.partial(made.apply, {'params': params}, ids, ids)
    assert call(jnp.ones((1, 2, 4), jnp.int32), spread=spread).shape[:2] == (1, 5)
    with pytest.raises(ValueError, match=r'segment_ids as spread.take \(1, 2, 4\)'):
        call(ids, spread=spread)
    with pytest.raises(ValueError, match='spread needs positions and segment_ids'):
        call(spread=spread)


def test_a_key_of_everyone_is_seen_by_all_but_padding():
    seg, pos = jnp.array([[1, 1, 2, 0]]), jnp.array([[0, 1, 0, 0]])
    k_seg, k_pos = jnp.array([[-1, 1, 1, 2, 0]]), jnp.array([[9, 0, 1, 0, 0]])
    mask = np.asarray(heads.visible(pos, k_pos, seg, k_seg, None))[0].astype(int)
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('sharing'))


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
    got = sharing.refusal(train_tiny.config(folder, *flags))
    assert got == reason or (reason and reason in got)


def test_a_run_shares_by_itself_and_counts_the_examples_tokens(folder):
    given, notes = {}, []
    for flag in ('--share_prefix', '--no_share_prefix'):
        config = train_tiny.config(folder, '--mesh=1,1,1', flag)
        built = model.setup(config, fresh=False)
        given[flag] = feed.make(config, built.tokenizer, built.mesh, say=notes.append)
    once, each = given.values()
    assert once.batcher.forests
    assert not each.batcher.forests
    assert f'{once.batcher.shape.tokens:,} tokens' in notes[0]
    assert 'what prompts begin with stands once' in notes[0]
    assert 'stands once' not in notes[1]
    assert 'take' in once.validation[0]
    size = lambda fed: fed.arrays['tokens'].size
    for step in range(3):
        mine, other = once.at(step), each.at(step)
        np.testing.assert_array_equal(mine.rows, other.rows)
        assert mine.tokens == other.tokens == int((other.arrays['segment_ids'] != 0).sum())
        assert size(mine) < 0.7 * size(other)
