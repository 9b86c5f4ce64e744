"""The loss over pieces of the vocabulary: against float64, for any pieces and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.models import online
from tests.models_tiny import jit

ROWS, WORDS, WIDTH = 37, 101, 16  # pieces of 101 words overlap, chunks of 37 rows are padded


@pytest.fixture(scope='module')
def inputs():
    rng = np.random.default_rng(0)
    hidden = 3 * rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    table = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    labels = rng.integers(0, WORDS, ROWS).astype(np.int32)
    labels[:2] = 0, WORDS - 1
    hidden[2] = 20 * table[labels[2]]  # sure, and right
    return hidden, table, labels


def exact(hidden, table, labels):
    """The loss and its slope in float64; neither has a difference of two numbers near 1."""
    hidden, table = hidden.astype(np.float64), table.astype(np.float64)
    logits = hidden @ table.T
    rest = np.exp(logits - logits[np.arange(len(labels)), labels][:, None])
    rest[np.arange(len(labels)), labels] = 0.0
    total = rest.sum(axis=1, keepdims=True)
    slope = (rest @ table - total * table[labels]) / (1.0 + total)
    return np.log1p(total[:, 0]), slope


def made(hidden, table, labels, axis=0, dtype=jnp.float32):
    table = table if axis == 0 else table.T
    run = lambda h, t, y: online.loss_and_slope(h, t, y, axis=axis, dtype=dtype)
    return jit(run)(hidden, table, labels)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('rows', [10, 2048])
@pytest.mark.parametrize('cells', [1, 500, 2**22])  # a word at a time; a few; all at once
def test_loss_and_slope_are_those_of_all_logits(inputs, cells, rows, axis, monkeypatch):
    monkeypatch.setattr(online, 'CELLS', cells)
    monkeypatch.setattr(online, 'ROWS', rows)
    loss, slope = made(*inputs, axis)
    wanted_loss, wanted_slope = exact(*inputs)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('cells', [500, 2**22])
def test_a_sure_row_has_a_loss_and_a_slope(inputs, cells, monkeypatch):
    """As -log(1 - 1e-20) is 1e-20; by log(sum) it would be 0."""
    monkeypatch.setattr(online, 'CELLS', cells)
    table, labels = inputs[1], inputs[2][2:3]
    hidden = inputs[0][2:3] / np.float32(20)  # logits that float32 holds to 1e-6
    loss, slope = made(hidden, table, labels)
    wanted_loss, wanted_slope = exact(hidden, table, labels)
    assert 0 < wanted_loss[0] < 1e-2
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-4)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-4, atol=1e-4 * abs(wanted_slope).max())
    loss, slope = made(inputs[0][2:3], table, labels)
    assert 0 <= loss[0] < 1e-20
    assert np.isfinite(slope).all()


def test_bfloat16_products_are_summed_in_float32(inputs):
    hidden, table, labels = inputs
    half = jnp.bfloat16
    loss, slope = made(hidden.astype(half), table.astype(half), labels, dtype=half)
    assert (loss.dtype, slope.dtype) == (jnp.float32, half)
    rounded = [np.asarray(x.astype(half), np.float32) for x in (hidden, table)]
    wanted_loss, wanted_slope = exact(*rounded, labels)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-4, atol=1e-4)
    gap = np.linalg.norm(np.asarray(slope, np.float64) - wanted_slope)
    assert gap < 0.01 * np.linalg.norm(wanted_slope)


def test_only_a_piece_of_the_logits_exists():
    rows, words, width = 1024, 65536, 16
    shapes = [((rows, width), jnp.float32), ((words, width), jnp.float32), ((rows,), jnp.int32)]
    shapes = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    run = lambda h, t, y: online.loss_and_slope(h, t, y, axis=0, dtype=jnp.float32)
    temp = jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temp < 1.3 * 4 * online.CELLS < 4 * rows * words / 12
