"""What every override must hold on real models: scanned and not, padded, packed, cached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import models
from tests import overrides_tiny as tiny
from tests import toys
from tests.models_tiny import tokens

T, CLOSE = tiny.T, {'atol': 5e-5, 'rtol': 0}
CELLS = [(name, kind) for name in tiny.NAMES for kind in tiny.KINDS]


@pytest.mark.parametrize(('name', 'kind'), CELLS)
def test_it_starts_as_the_base_and_acts_once_moved(name, kind):
    """The stated exceptions: a prefix takes part in every softmax, S2 cuts long texts at once."""
    fresh, moved = tiny.adapted(name, kind)
    start = np.asarray(tiny.forward(name, kind)(fresh, tokens(2, T), tiny.ones()))
    if name in ('prefix', 's2'):
        assert np.abs(start - tiny.plain(kind)).max() > 1e-2
    else:
        np.testing.assert_allclose(start, tiny.plain(kind), **CLOSE)
    assert np.abs(tiny.logits(name, kind) - tiny.plain(kind)).max() > 1e-2
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} <= {jnp.dtype('float32')}


@pytest.mark.parametrize(('name', 'kind'), CELLS)
def test_unrolled_equals_scanned(name, kind):
    fresh, moved = tiny.adapted(name, kind)
    params = tiny.base(kind, scan=False)[1]
    again = jp.init(tiny.plan(name, kind, scan=False), jax.random.key(0), params)
    apart = jp.State(models.unstack(moved.params), {})
    if name != 's2':
        assert toys.worst(again.params, models.unstack(fresh.params)) <= 1e-6
    got = tiny.forward(name, kind, False)(apart, tokens(2, T), tiny.ones())
    np.testing.assert_allclose(got, tiny.logits(name, kind), **CLOSE)


@pytest.mark.parametrize(('name', 'kind'), CELLS)
def test_a_future_token_changes_nothing_before_it(name, kind):
    rows = tokens(2, T).copy()
    rows[:, 7:] = (rows[:, 7:] + 11) % 61
    got = np.asarray(tiny.forward(name, kind)(tiny.adapted(name, kind)[1], rows, tiny.ones()))
    np.testing.assert_allclose(got[:, :7], tiny.logits(name, kind)[:, :7], **CLOSE)
    assert np.abs(got[:, 7:] - tiny.logits(name, kind)[:, 7:]).max() > 1e-2


@pytest.mark.parametrize(('name', 'kind'), [cell for cell in CELLS if cell[0] != 's2'])
def test_padded_and_packed_equal_plain(name, kind):
    """Not S2, whose groups are cut from the row as it is laid out; see test_overrides_core."""
    run, state = tiny.forward(name, kind), tiny.adapted(name, kind)[1]
    t, want = tokens(2, T), tiny.logits(name, kind)
    rows = np.stack([np.r_[np.full(5, 9), t[0, :7]], np.r_[t[0, :5], t[1, :7]]]).astype(np.int32)
    seg = np.array([[0] * 5 + [1] * 7, [1] * 5 + [2] * 7], np.int32)
    got = np.asarray(run(state, rows, seg))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[0, 5:], want[0, :7], **CLOSE)
    np.testing.assert_allclose(got[1, :5], want[0, :5], **CLOSE)
    np.testing.assert_allclose(got[1, 5:], want[1, :7], **CLOSE)


@pytest.mark.parametrize(('name', 'kind'), CELLS)
def test_cached_left_padded_decoding_equals_plain(name, kind):
    """Prompts of 6 and 3 tokens in one left-padded batch, then two tokens at a time."""
    run, state = tiny.forward(name, kind), tiny.adapted(name, kind)[1]
    want = tiny.plain(kind) if name == 's2' else tiny.logits(name, kind)  # S2 is for training
    t = tokens(2, T)
    rows = np.stack([t[0, :6], np.r_[[9, 9, 9], t[1, :3]]]).astype(np.int32)
    seg = np.array([[1] * 6, [0] * 3 + [1] * 3], np.int32)
    logits, cache = run(state, rows, seg, tiny.base(kind)[0].init_cache(2, 16))
    got = [np.asarray(logits)]
    for i in range(0, 6, 2):
        step = np.stack([t[0, 6 + i : 8 + i], t[1, 3 + i : 5 + i]])
        logits, cache = run(state, step, np.ones((2, 2), np.int32), cache)
        got.append(np.asarray(logits))
    got = np.concatenate(got, axis=1)
    np.testing.assert_allclose(got[0], want[0], **CLOSE)
    np.testing.assert_allclose(got[1, 3:], want[1, :9], **CLOSE)
