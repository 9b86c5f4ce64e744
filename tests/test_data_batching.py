"""Batches: fixed shapes, a function of the step, packed equal to unpacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import models
from train import batching, packing
from train.batching import Batcher
from train.encoding import Example

KEYS = {'tokens', 'positions', 'segment_ids', 'select', 'labels', 'weights', 'rows'}


def _examples(count, seed=0, longest=40, vocab=61):
    rng = np.random.default_rng(seed)
    result = []
    for row in range(count):
        n = int(rng.integers(4, longest + 1))
        labelled = np.arange(n) >= n - int(rng.integers(1, 4))
        tokens = rng.integers(1, vocab, n).astype(np.int32)
        result.append(Example(tokens, labelled, 1000 + row))
    return result


def _segments(batch):
    """(tokens, positions, labelled) of every segment of a micro-batch, in no particular order."""
    r, t = batch['tokens'].shape
    marked = np.zeros(r * t, bool)
    for at, label, weight in zip(batch['select'], batch['labels'], batch['weights'], strict=True):
        if weight:
            assert batch['tokens'].ravel()[at + 1] == label
            marked[at + 1] = True
    marked = marked.reshape(r, t)
    for row in range(r):
        for segment in range(1, batch['segment_ids'][row].max() + 1):
            (at,) = np.nonzero(batch['segment_ids'][row] == segment)
            assert (np.diff(at) == 1).all()
            yield batch['tokens'][row, at], batch['positions'][row, at], marked[row, at]


def _same(batch, examples):
    """The micro-batch holds exactly these examples."""
    found = sorted((t.tolist(), m.tolist()) for t, _, m in _segments(batch))
    assert found == sorted((e.tokens.tolist(), e.labelled.tolist()) for e in examples)
    for _, positions, _ in _segments(batch):
        np.testing.assert_array_equal(positions, np.arange(len(positions)))
    padding = batch['segment_ids'] == 0
    assert not batch['tokens'][padding].any()
    assert not batch['positions'][padding].any()
    assert batch['weights'].sum() == sum(e.labelled.sum() for e in examples)


def _micro(batch, g):
    return {name: array[g] for name, array in batch.items()}


@pytest.mark.parametrize('packed', [True, False])
def test_every_update_holds_its_rows_and_shapes_never_change(packed):
    examples = _examples(53)
    batcher = Batcher(examples, 6, 3, packed, 64, grad_acc=2, epochs=2.5)
    shapes = set()
    for step in range(batcher.steps):
        batch = batcher.at(step)
        assert set(batch) == KEYS
        shapes.add(tuple((n, a.shape, str(a.dtype)) for n, a in sorted(batch.items())))
        for g in range(2):
            chosen = [examples[i] for i in batcher.indices(step)[g]]
            _same(_micro(batch, g), chosen)
            assert batch['rows'][g].tolist() == [e.row for e in chosen]
    assert len(shapes) == 1
    assert batch['tokens'].shape == (2, batcher.shape.rows, batcher.shape.width)
    assert batch['weights'].dtype == np.float32
    assert all(batch[name].dtype == np.int32 for name in KEYS - {'weights'})
    assert batch['tokens'].shape[2] % 8 == 0


def test_packing_never_changes_which_rows_form_an_update():
    examples = _examples(40)
    packed, single = Batcher(examples, 8, 5, True), Batcher(examples, 8, 5, False)
    for step in range(packed.steps):
        np.testing.assert_array_equal(packed.at(step)['rows'], single.at(step)['rows'])
    assert packed.shape.rows < single.shape.rows


def test_accumulation_divides_the_same_update():
    examples = _examples(40)
    one, two = Batcher(examples, 8, 5), Batcher(examples, 4, 5, grad_acc=2)
    for step in range(5):
        assert one.at(step)['rows'].ravel().tolist() == two.at(step)['rows'].ravel().tolist()


def test_each_row_once_per_epoch_and_every_update_full():
    batcher = Batcher(_examples(10), 4, seed=1, epochs=4)
    assert batcher.steps == 10
    stream = np.concatenate([batcher.at(s)['rows'].ravel() for s in range(10)])
    epochs = stream.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(1000, 1010))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_that_of_numpy_for_seed_and_epoch():
    batcher = Batcher(_examples(12), 4, seed=7, epochs=2)
    for epoch in range(2):
        order = np.random.default_rng([7, epoch]).permutation(12)
        for k in range(3):
            got = batcher.indices(3 * epoch + k).ravel()
            np.testing.assert_array_equal(got, order[4 * k : 4 * k + 4])


def test_a_step_does_not_depend_on_the_steps_before():
    examples = _examples(30)
    straight = Batcher(examples, 4, 2, grad_acc=2, epochs=5)
    wanted = [straight.at(step) for step in range(straight.steps)]
    for step in (11, 0, 18, 3):
        resumed = Batcher(examples, 4, 2, grad_acc=2, epochs=5).at(step)
        for name in KEYS:
            np.testing.assert_array_equal(resumed[name], wanted[step][name])
    other = Batcher(examples, 4, 3, grad_acc=2, epochs=5).at(0)
    assert other['rows'].tolist() != wanted[0]['rows'].tolist()


def test_fewer_examples_than_an_update():
    batcher = Batcher(_examples(3), 4, grad_acc=2, steps=3)
    for step in range(3):
        assert set(batcher.at(step)['rows'].ravel()) == {1000, 1001, 1002}


def test_steps_and_epochs():
    examples = _examples(10)
    assert Batcher(examples, 4, epochs=0.5).steps == 2
    assert Batcher(examples, 4, epochs=3).steps == 8
    assert Batcher(examples, 5, epochs=3).steps == 6
    assert Batcher(examples, 4, epochs=3, steps=5).steps == 5
    with pytest.raises(ValueError, match='step 8 is outside the run of 8 steps'):
        Batcher(examples, 4, epochs=3).at(8)
    with pytest.raises(ValueError, match='step -1 is outside'):
        Batcher(examples, 4).at(-1)


def test_first_fit_places_everything_without_overlap():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 33, (200, 9))
    row, start = packing.first_fit(lengths, 32)
    assert (start + lengths <= 32).all()
    for m in range(200):
        used = np.zeros((9, 32), int)
        for k in range(9):
            used[row[m, k], start[m, k] : start[m, k] + lengths[m, k]] += 1
        assert used.max() <= 1
        in_rows = np.bincount(row[m], weights=lengths[m], minlength=9)
        filled = in_rows[: row[m].max() + 1]
        assert (filled[:-1] + filled[1:] > 32).all() or len(filled) == 1


def test_first_fit_decreasing_by_hand():
    row, start = packing.first_fit(np.array([[3, 6, 5, 2, 4]]), 10)
    assert row.tolist() == [[1, 0, 1, 1, 0]]  # 6 4 | 5 3 2
    assert start.tolist() == [[5, 0, 0, 8, 6]]


@pytest.mark.parametrize('packed', [True, False])
def test_the_shape_is_the_smallest_for_the_run(packed):
    examples = _examples(60, longest=30)
    batcher = Batcher(examples, 8, 0, packed, 32, epochs=3)
    batches = [batcher.at(step) for step in range(batcher.steps)]
    rows = max(int(b['segment_ids'][0].any(axis=1).sum()) for b in batches)
    labels = max(int(b['weights'].sum()) for b in batches)
    assert batcher.shape.rows == rows
    assert labels <= batcher.shape.labels < labels + 8
    assert batcher.shape.width == 32


def test_the_width_with_the_fewest_tokens_wins():
    examples = [Example(np.ones(24, np.int32), np.arange(24) > 20, i) for i in range(8)]
    assert Batcher(examples, 8, max_length=64).shape[:2] == (8, 24)  # narrower of equals
    mixed = [Example(np.ones(n, np.int32), np.arange(n) > 2, n) for n in (40, 24, 40, 24)]
    assert Batcher(mixed, 4, max_length=64).shape[:2] == (2, 64)  # 128 tokens; at 40 wide 160
    assert Batcher(mixed, 4, max_length=8).shape[:2] == (4, 40)  # a longer example widens it


def test_rows_and_labels_divide_among_devices():
    batcher = Batcher(_examples(40), 6, row_multiple=4)
    assert batcher.shape.rows % 4 == 0
    assert batcher.shape.labels % 4 == 0
    assert Batcher(_examples(40), 6, packing=False, row_multiple=4).shape.rows == 8


def test_the_simulation_in_blocks_gives_the_same_shape(monkeypatch):
    examples = _examples(50)
    whole = Batcher(examples, 4, grad_acc=3, epochs=9).shape
    monkeypatch.setattr(batching, 'BLOCK', 7)
    assert Batcher(examples, 4, grad_acc=3, epochs=9).shape == whole


def test_occupancy_counts_the_tokens():
    examples = _examples(64)
    batcher = Batcher(examples, 8)
    seen = [batcher.at(step)['segment_ids'] != 0 for step in range(8)]
    assert np.mean(seen) == pytest.approx(batcher.occupancy)


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize(('count', 'batch'), [(13, 4), (12, 4), (3, 8)])
def test_eval_batches_hold_every_row_once_in_order(packed, count, batch):
    examples = _examples(count)
    batches = list(Batcher(examples, batch, 0, packed, row_multiple=2).eval_batches())
    assert len({b['tokens'].shape for b in batches}) == 1
    assert len({b['select'].shape for b in batches}) == 1
    rows = np.concatenate([b['rows'] for b in batches])
    assert rows[rows >= 0].tolist() == [e.row for e in examples]
    for k, b in enumerate(batches):
        _same(b, examples[k * batch : (k + 1) * batch])


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'examples': []}, 'no examples to make batches of'),
        ({'batch': 0}, 'batch must be at least 1, got 0'),
        ({'grad_acc': 0}, 'grad_acc must be at least 1, got 0'),
        ({'row_multiple': 0}, 'row_multiple must be at least 1'),
        ({'epochs': 0.0}, 'a run must have at least 1 step'),
        ({'steps': 0}, 'a run must have at least 1 step'),
    ],
)
def test_wrong_settings(change, reason):
    with pytest.raises(ValueError, match=reason):
        Batcher(**({'examples': _examples(4), 'batch': 2} | change))


def test_a_shape_made_for_other_examples_is_refused():
    with pytest.raises(ValueError, match='do not fit'):
        packing.fill(_examples(4), packing.Shape(1, 40, 40), True)
    with pytest.raises(ValueError, match='more than 2 labelled'):
        packing.fill(_examples(4), packing.Shape(4, 40, 2), True)


def test_packed_loss_and_gradient_equal_the_unpacked():
    """GPT-Neo: learned positions and a local window show a wrong position or border at once."""
    config = models.ModelConfig(
        model_type='gpt_neo',
        vocab_size=61,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        max_positions=40,  # less than a packed row: positions count per segment
        activation='gelu_new',
        norm_eps=1e-5,
        tie_embeddings=True,
        windows=(None, 6),
    )
    model, rng = models.build(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        models.param_shapes(model),
    )

    @jax.jit
    def value_and_grad(params, batch):
        def loss(params):
            nll = model.apply(
                {'params': params},
                batch['tokens'],
                positions=batch['positions'],
                segment_ids=batch['segment_ids'],
                select=batch['select'],
                labels=batch['labels'],
            )
            return (nll * batch['weights']).sum() / batch['weights'].sum()

        return jax.value_and_grad(loss)(params)

    examples, results = _examples(24), []
    for packed in (True, False):
        batcher = Batcher(examples, 8, 0, packed, 96)
        shape = packing.Shape(8, 96, batcher.shape.labels)  # the same for both: one compile
        batcher.shapes = (shape,)
        batch = {n: jnp.asarray(a[0]) for n, a in batcher.at(1).items() if n != 'rows'}
        results.append((batch['segment_ids'], *value_and_grad(params, batch)))
    (packed_ids, loss, grads), (single_ids, want, wanted) = results
    assert packed_ids.max() > 1
    assert (packed_ids > 0).any(axis=1).sum() < 5  # rows in use
    assert (single_ids > 0).any(axis=1).sum() == 8
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert largest > 1e-2
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * largest)
