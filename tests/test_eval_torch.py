"""Generation and sampling filters against transformers' own, on the same tiny weights."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='compares with transformers on torch')

import transformers  # noqa: E402  (after the skip)
from transformers.generation import logits_process as theirs  # noqa: E402

import jaxpeft as jp  # noqa: E402
from eval import decode, sampling  # noqa: E402
from tests import eval_tiny  # noqa: E402

NEW = 7
torch.set_num_threads(1)  # matrices of 16: more threads only wait for each other


def make_pair(kind, folder):
    """(tiny without its adapter, the torch model of the same weights)."""
    tiny = eval_tiny.make(kind)
    jp.models.save_pretrained(folder, tiny.model, tiny.params, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    bare = tiny._replace(forward=jp.bind({}, tiny.model.apply), state=jp.State({}, {}))
    return bare, model


def torch_generate(model, prompts, eos, beams):
    rows = []
    for prompt in prompts:
        ids = torch.tensor(prompt[None].astype(np.int64))
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=beams,
                eos_token_id=eos,
                pad_token_id=eos[0],
            )
        row = out[0, len(prompt) :].tolist()
        ends = [i for i, token in enumerate(row) if token in eos]
        rows.append(row[: min(ends, default=NEW)])
    return rows


@pytest.mark.parametrize(('kind', 'beams'), [('llama', 1), ('gpt_neo', 4)])
def test_same_sequences_as_transformers(kind, beams, tmp_path):
    tiny, model = make_pair(kind, tmp_path)
    prompts = eval_tiny.prompts(count=5)
    never = decode.generate(*tiny, prompts, new_tokens=NEW, eos=999, batch=4, beams=beams)
    common = np.bincount(np.concatenate([row[1:] for row in never])).argsort()[::-1]
    lengths = set()
    one, two, three = int(never[0][2]), *map(int, common[:2])
    for eos in ([one], [two], [three], [two, three, one]):
        found = decode.generate(*tiny, prompts, new_tokens=NEW, eos=eos, batch=4, beams=beams)
        assert [f.tolist() for f in found] == torch_generate(model, prompts, eos, beams), eos
        lengths |= {len(f) for f in found}
    assert len(lengths) > 2  # rows that end early, late and never


def test_filters_are_those_of_transformers():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 40)).astype(np.float32)
    seen = rng.integers(0, 4, (4, 12))  # few tokens: pairs and triples repeat
    history = sampling.History(
        jnp.pad(jnp.asarray(seen), ((0, 0), (0, 3))),
        jnp.pad(jnp.ones(seen.shape, bool), ((0, 0), (0, 3))),
        jnp.int32(11),
    )
    tokens, scores = torch.tensor(seen), torch.tensor(logits)
    cases = [
        (theirs.RepetitionPenaltyLogitsProcessor(1.5), sampling.penalise, (history, 1.5)),
        (theirs.NoRepeatNGramLogitsProcessor(2), sampling.ban_ngrams, (history, 2)),
        (theirs.NoRepeatNGramLogitsProcessor(3), sampling.ban_ngrams, (history, 3)),
        (theirs.TopKLogitsWarper(10), sampling.keep_top_k, (10,)),
        (theirs.TopPLogitsWarper(0.8), sampling.keep_top_p, (0.8,)),
    ]
    for reference, ours, args in cases:
        expected = reference(tokens, scores.clone()).numpy()
        assert not np.array_equal(expected, logits)
        np.testing.assert_allclose(ours(jnp.asarray(logits), *args), expected, rtol=1e-6)
