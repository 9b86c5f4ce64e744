"""Perplexity against transformers' torch models on the same weights and text."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='compares with transformers on torch')

import transformers  # noqa: E402  (after the skip)

import jaxpeft as jp  # noqa: E402
from eval import perplexity  # noqa: E402
from tests import eval_tiny  # noqa: E402

torch.set_num_threads(1)


def torch_figures(model, texts, window, stride):
    """(corpus, mean of texts, tenths, tokens): the usual strided recipe, its counts made exact."""
    per_text = []
    for ids in texts:
        seen, own = 0, []
        for begin in range(0, len(ids), stride):
            end = min(begin + window, len(ids))
            labels = torch.tensor(np.asarray(ids[begin:end], np.int64))[None]
            inputs = labels.clone()
            labels[:, : seen - begin] = -100
            with torch.no_grad():
                logits = model(inputs).logits[0, :-1].double()
            loss = torch.nn.functional.cross_entropy(
                logits, labels[0, 1:], ignore_index=-100, reduction='none'
            )
            own += loss[labels[0, 1:] != -100].tolist()
            seen = end
            if end == len(ids):
                break
        per_text.append(np.array(own))
    flat = np.concatenate(per_text)
    tenths = np.zeros((len(texts), 10))
    for i, own in enumerate(per_text):
        size = len(own) // 10
        tenths[i] = [own[d * size : None if d == 9 else (d + 1) * size].mean() for d in range(10)]
    return (
        math.exp(flat.mean()),
        np.mean([math.exp(own.mean()) for own in per_text]),
        np.exp(tenths.mean(axis=0)),
        len(flat),
    )


def check(found, expected):
    corpus, mean, tenths, tokens = expected
    assert found['tokens'] == tokens
    assert found['corpus_ppl'] == pytest.approx(corpus, rel=1e-4)
    assert found['mean_text_ppl'] == pytest.approx(mean, rel=1e-4)
    np.testing.assert_allclose(found['positional_ppl'], tenths, rtol=1e-4)


@pytest.mark.parametrize('kind', ['gpt_neo', 'llama'])
def test_same_as_transformers(kind, tmp_path):
    tiny = eval_tiny.make(kind)
    jp.models.save_pretrained(tmp_path, tiny.model, tiny.params, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    bare = jp.bind({}, tiny.model.apply), jp.State({}, {}), tiny.params, tiny.model
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 61, n) for n in (150, 40, 64, 17)]
    for window, stride in ((32, 8), (64, 63)):
        found = perplexity.measure(*bare, texts, window=window, stride=stride, batch=4)
        check(found, torch_figures(model, texts, window, stride))


def pieces(folder):
    """stories260K's sentencepiece BPE from its list of pieces: the earlier piece merges first."""
    listed = json.loads((folder / 'tok512_pieces_latin1.json').read_text())
    rank = {piece: i for i, piece in enumerate(listed)}

    def encode(text):
        ids = []
        for letter in ' ' + text:
            raw = letter.encode().decode('latin1')
            ids += [rank[raw]] if raw in rank else [3 + byte for byte in letter.encode()]
        while True:
            pairs = [rank.get(listed[a] + listed[b], 999) for a, b in itertools.pairwise(ids)]
            if not pairs or min(pairs) == 999:
                return [1, *ids]
            at = int(np.argmin(pairs))
            ids[at : at + 2] = [pairs[at]]

    return encode


def test_stories260k_on_tinystories(shared_data):
    folder = shared_data / 'models-small' / 'stories260k_hf'
    with gzip.open(shared_data / 'tinystories' / 'tinystories_1000.jsonl.gz', 'rt') as lines:
        stories = [json.loads(next(lines))['text'] for _ in range(12)]
    encode = pieces(folder)
    texts = [encode(story) for story in stories]
    model, params, _ = jp.models.load(folder)
    bare = jp.bind({}, model.apply), jp.State({}, {}), params, model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = perplexity.measure(*bare, texts, window=128, stride=64)
    check(found, torch_figures(theirs, texts, 128, 64))
    assert 3 < found['corpus_ppl'] < 6  # it knows these stories
    whole = perplexity.measure(*bare, texts, window=512, stride=256)
    assert whole['corpus_ppl'] < found['corpus_ppl']  # more context helps
