"""Label log-likelihoods equal plain full forward passes, whatever is shared, cached or padded."""

import jax
import numpy as np
import pytest

from eval import batches, likelihood, scoring
from tests import eval_tiny


@pytest.fixture(scope='module')
def tiny():
    return eval_tiny.make()


@pytest.fixture(autouse=True)
def prefix_is_shared(monkeypatch):
    """As with a large model; for a tiny one the program that it takes would cost more."""
    monkeypatch.setattr(batches, 'worth_sharing', lambda *args: True)


def plain(tiny, prompt, outputs):
    """Sum of the log-probabilities of every output token, by one uncached pass over each row."""
    rows = [np.concatenate([prompt, out]) for out in outputs]
    four = rows + rows[:1] * (4 - len(rows))  # one shape, one compilation
    found = []
    for row, logits in zip(rows, eval_tiny.padded_logits(tiny, four, 64), strict=False):
        logp = np.asarray(jax.nn.log_softmax(logits))
        at = np.arange(len(prompt), len(row))
        found.append(logp[at - 1, row[at]].sum())
    return np.array(found)


def outputs_of(tails, common):
    return [np.array([*common, *tail], np.int32) for tail in tails]


CASES = {
    # 'the correct answer is answer' + one digit each: one token is left, no second pass
    'one token': [[10], [11], [12]],
    # 'true' and 'false' as letters, a label that begins like another, a single token
    'several tokens': [[20, 21, 22, 23], [30, 31, 32, 33, 34], [20, 21], [40]],
}


@pytest.mark.parametrize('case', CASES)
def test_equal_to_full_forwards(tiny, case):
    prompts = eval_tiny.prompts(count=5)
    tails = CASES[case]
    # rows offer different numbers of labels, as ARC's do
    outputs = [outputs_of(tails[: 2 + i % 3], [7, 8, 9]) for i in range(len(prompts))]
    found = scoring.loglik(*tiny, prompts, outputs, batch=2)
    assert [len(f) for f in found] == [len(o) for o in outputs]
    for prompt, out, scores in zip(prompts, outputs, found, strict=True):
        whole = plain(tiny, prompt, out)
        # what all labels of a row share adds the same number to each and is left out
        np.testing.assert_allclose(scores - scores[0], whole - whole[0], atol=1e-4)
        context = np.concatenate([prompt, [7, 8, 9]]).astype(np.int32)
        np.testing.assert_allclose(scores, plain(tiny, context, tails[: len(out)]), atol=1e-4)
    assert np.ptp(found[2]) > 1e-2


def test_the_last_positions_of_the_model_can_be_used(tiny):
    prompt = np.random.default_rng(2).integers(4, 61, 61, dtype=np.int32)
    outputs = outputs_of([[20, 21, 22], [30, 31, 33]], [])
    (found,) = scoring.loglik(*tiny, [prompt], [outputs])
    np.testing.assert_allclose(found, plain(tiny, prompt, outputs), atol=1e-4)


def test_longer_labels_of_another_row_take_no_position_away(tiny):
    """The cache would leave room for six tokens; the long prompt's labels have one."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(4, 61, n, dtype=np.int32) for n in (63, 10)]
    outputs = [outputs_of([[7], [8]], []), outputs_of([[7, 9, 9, 9, 9, 9], [8]], [])]
    rows = []
    found = scoring.loglik(*tiny, prompts, outputs, advance=rows.append)
    for prompt, own, scores in zip(prompts, outputs, found, strict=True):
        np.testing.assert_allclose(scores, plain(tiny, prompt, own), atol=1e-4)
    assert sum(rows) == 4  # labels


def test_what_has_no_position_is_refused(tiny):
    long = np.ones(64, np.int32)
    for count in (1, 65):  # in the cache, and without it
        with pytest.raises(ValueError, match=r'a row of \d+ tokens .* has positions for 64'):
            scoring.loglik(*tiny, [np.ones(65, np.int32)], [outputs_of([[7] * count, [8]], [])])
    with pytest.raises(ValueError, match='a row of 65 tokens'):
        likelihood.sequences(*tiny, [likelihood.Pair(long, np.array([7, 8]))])
    with pytest.raises(ValueError, match='batch must be at least 1, got 0'):
        likelihood.loglik(*tiny, [likelihood.Pair(long[:3], long[:1])], batch=0)


def test_nothing_asked():
    tiny = eval_tiny.make()
    assert scoring.loglik(*tiny, [], []) == likelihood.sequences(*tiny, []) == []


@pytest.mark.parametrize('case', CASES)
def test_a_broken_model_gets_no_scores(tiny, case):
    bad, (prompt,) = eval_tiny.broken(tiny), eval_tiny.prompts(count=1)
    pair = likelihood.Pair(prompt, np.array(CASES[case][0], np.int32))
    for ask in (
        lambda: scoring.loglik(*bad, [prompt], [outputs_of(CASES[case], [])]),
        lambda: likelihood.loglik(*bad, [pair]),
        lambda: likelihood.sequences(*bad, [pair]),
        lambda: likelihood.sequences(*bad, [pair], greedy=True),
    ):
        with pytest.raises(FloatingPointError, match='likelihood is not a number'):
            ask()
