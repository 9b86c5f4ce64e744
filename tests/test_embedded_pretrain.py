"""The pretraining of the embedded base: marks, guided heads, resume, the files it writes."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxpeft as jp
from jaxpeft import models
from train.embedded import card, corpus, guide, marks, pretrain, tokenizer

TINY = pretrain.Setup(
    vocabulary=400, tokenizer_documents=200, positions=48, hidden=16, heads=2, inner=16,
    million_tokens=0.004, row=32, batch=2, steps=6, warmup=2, window=32,
)  # fmt: skip


class StoppedError(Exception):
    pass


@pytest.fixture(scope='module')
def text():
    rng = random.Random(3)
    documents = [corpus.document(rng, i / 300) for i in range(300)]
    bpe = tokenizer.train([marks.plain(each) for each in documents], 400)
    return bpe, marks.encode(bpe, documents, 0.2), documents


def test_marks_say_where_options_answers_and_asks_are(text):
    bpe, *_ = text
    marked = (
        'Box1: \x02red\x03, box2: \x02blue\x03. '
        '\x04apple\x05 box\x011\x01, \x04sky\x05 box\x012\x01.'
    )
    (found,) = marks.encode(bpe, [marked], 0.2, first=7)
    assert bpe.decode(found.tokens[:-1].tolist()) == marks.plain(marked)
    assert found.tokens[-1] == 0
    at = np.nonzero(found.wanted)[0]
    assert bpe.decode(found.tokens[at + 1].tolist()) == '12'
    assert found.wanted[at].tolist() == [71, 72]
    assert (found.weights == 1).nonzero()[0].tolist() == (at + 1).tolist()
    for said, number, option in (('red', '1', 71), ('blue', '2', 72)):
        inside = np.nonzero(found.option == option)[0]
        assert bpe.decode(found.tokens[inside].tolist()).strip() == said
        assert {bpe.decode([found.tokens[i - found.label[i]]]) for i in inside} == {number}
    for t, said in zip(at, ('apple', 'sky'), strict=True):
        asked = found.tokens[found.asked == found.about[t]].tolist()
        assert bpe.decode(asked).strip() == said


def test_every_number_that_answers_is_the_one_before_its_option(text):
    _, encoded, _ = text
    checked = 0
    for each in encoded:
        for t in np.nonzero(each.wanted)[0]:
            first = np.nonzero(each.option == each.wanted[t])[0][0]
            assert each.tokens[first - each.label[first]] == each.tokens[t + 1]
            assert (each.asked == each.about[t]).any()
            checked += 1
    assert checked > 100
    assert len(np.unique(np.concatenate([e.option[e.option > 0] for e in encoded]))) > 100


def test_watching_the_attention_changes_no_logit():
    model = models.build(pretrain.config(TINY), scan=False)
    params = pretrain.initial(TINY, model)
    tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, 400)
    seen = []
    with nn.intercept_methods(guide.spy(seen)):
        watched = model.apply({'params': params}, tokens)
    np.testing.assert_allclose(watched, model.apply({'params': params}, tokens), atol=2e-5)
    assert [each.shape for each in seen] == [(2, 2, 20, 20)] * 4
    np.testing.assert_allclose(jnp.stack(seen).sum(-1), 1.0, atol=1e-6)


def test_the_guides_are_zero_for_heads_that_look_where_they_should(text):
    _, encoded, _ = text
    each = next(e for e in encoded if e.wanted.any())
    rows = marks.Encoded(*(x[None] for x in each))
    n, at = len(each.tokens), np.arange(len(each.tokens))
    number = (at[:, None] - each.label[:, None] == at) & (each.label[:, None] > 0)
    gather = (each.about[:, None] == each.asked) & (each.about[:, None] > 0)
    find = (each.wanted[:, None] == each.option) & (each.wanted[:, None] > 0)
    right = [(x / np.maximum(x.sum(-1, keepdims=True), 1))[None, None] for x in
             (number, gather, find, find)]  # fmt: skip
    loss, masses = guide.loss([jnp.asarray(x) for x in right], rows)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(masses, 1.0, rtol=1e-6)
    even = [jnp.full((1, 1, n, n), 1 / n)] * 4
    loss, masses = guide.loss(even, rows)
    assert loss > 4
    assert (masses < 1).all()


def test_a_pretraining_that_was_stopped_goes_on_bit_for_bit(tmp_path, text):
    _, encoded, _ = text
    joined = marks.Encoded(*map(np.concatenate, zip(*encoded, strict=True)))
    _, whole, figures = pretrain.train(TINY, joined, tmp_path / 'whole.msgpack')
    kept = pretrain.make_step

    def stops(*args):
        step, count = kept(*args), iter(range(4))

        def run(*batch):
            if next(count, None) is None:
                raise StoppedError
            return step(*batch)

        return run

    pretrain.make_step = stops
    try:
        with pytest.raises(StoppedError):
            pretrain.train(TINY, joined, tmp_path / 'cut.msgpack', every=3)
    finally:
        pretrain.make_step = kept
    _, resumed, again = pretrain.train(TINY, joined, tmp_path / 'cut.msgpack', every=3)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    np.testing.assert_array_equal(again, figures)


def test_the_command_writes_a_base_that_loads_and_its_card(tmp_path, capsys):
    folder = tmp_path / 'tiny'
    found = pretrain.run(TINY, folder, tmp_path / 'work')
    card.write(folder, found)
    model, _, bpe = jp.models.load(folder)
    assert model.config.num_layers == TINY.layers
    assert len(bpe) <= TINY.vocabulary
    training = json.loads((folder / 'training.json').read_text())
    assert training['setup']['steps'] == 6
    assert f'{training["parameters"]:,} parameters' in (folder / 'README.md').read_text()
    other = dataclasses.replace(TINY, seed=1)
    with pytest.raises(ValueError, match='other settings'):
        pretrain.run(other, folder, tmp_path / 'work')
