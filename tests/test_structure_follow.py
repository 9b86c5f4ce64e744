"""HyLoRADA v2 in language modelling: from text through features to logits, and its evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import decode, scoring
from tests import toys
from train import model as train_model


@pytest.fixture(scope='module')
def setup():
    """(model, params, tokenizer, state, forward) of the embedded base, its adapter moved."""
    model, params, tokenizer = jp.models.load('embedded')
    plan = jp.compose(model, params, 'hylorada_v2', options={'hylorada_v2': {'rank': 4}})
    state = toys.moved(jp.init(plan, jax.random.key(0), params), jax.random.key(1), 0.5)
    return model, params, tokenizer, state, train_model.bound(plan, model, tokenizer)


@pytest.fixture(scope='module')
def prompts(setup):
    tokenizer = setup[2]
    code = 'def f(x, [y]):\n    if x:\n        return "a'
    texts = [code, 'Box1: a dog (brown). Box2:', 'it is (']
    return [np.array(tokenizer(text)['input_ids'], np.int32) for text in texts]


def test_the_prior_matters_and_a_changed_suffix_of_the_text_changes_no_earlier_logit(setup):
    model, params, tokenizer, state, forward = setup
    text = 'def f(x):\n    return (x + '
    ids = [tokenizer(text + end)['input_ids'] for end in ('1)\n', ')]"""')]
    shared = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    width = min(map(len, ids))
    tokens = jnp.asarray([one[:width] for one in ids])
    assert 0 < shared < width
    logits = jax.jit(forward)(state, {'params': params}, tokens)
    np.testing.assert_allclose(logits[0, :shared], logits[1, :shared], atol=1e-5)
    assert toys.worst(logits[0, shared:], logits[1, shared:]) > 1e-2
    plan = jp.compose(model, params, 'hylorada_v2', options={'hylorada_v2': {'rank': 4}})
    without = jp.bind(plan, model.apply)(state, {'params': params}, tokens)
    assert toys.worst(without, logits) > 1e-3


def test_padding_packing_and_the_cache_give_the_plain_logits(setup, prompts):
    model, params, _, state, forward = setup
    run = jax.jit(forward)
    variables = {'params': params}
    one, two = prompts[0][None], prompts[1][None]
    plain = [run(state, variables, jnp.asarray(x)) for x in (one, two)]
    pad = np.zeros((1, 3), np.int32)
    padded = run(
        state, variables, jnp.asarray(np.concatenate([pad, one], axis=1)),
        segment_ids=jnp.asarray(np.concatenate([pad, np.ones_like(one)], axis=1)),
    )  # fmt: skip
    np.testing.assert_allclose(padded[:, 3:], plain[0], atol=1e-3)
    packed = run(
        state, variables, jnp.asarray(np.concatenate([one, two], axis=1)),
        segment_ids=jnp.asarray(np.concatenate([np.ones_like(one), 2 * np.ones_like(two)], axis=1)),
    )  # fmt: skip
    np.testing.assert_allclose(packed[:, one.shape[1] :], plain[1], atol=1e-3)
    cache = model.init_cache(1, one.shape[1])
    steps = []
    for chunk in np.split(one, [4, 5, 6], axis=1):
        out, cache = run(state, variables, jnp.asarray(chunk), cache=cache)
        steps.append(out)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), plain[0], atol=1e-3)


def test_generation_beams_and_scores_equal_passes_without_a_cache(setup, prompts):
    model, params, _, state, forward = setup
    args = (forward, state, params, model)
    eos = 0
    whole = jax.jit(lambda tokens: forward(state, {'params': params}, tokens))

    def plain(text):
        """Logits [T, V] of a text alone; what stands behind it changes nothing before."""
        padded = np.concatenate([text, np.zeros(64 - len(text), np.int32)])
        return np.asarray(whole(jnp.asarray(padded[None], jnp.int32))[0, : len(text)])

    made = decode.generate(*args, prompts, new_tokens=4, eos=eos, batch=2)
    for prompt, new in zip(prompts, made, strict=True):
        text = prompt
        for token in new:
            logits = plain(text)[-1]
            assert logits[token] >= logits.max() - 1e-4
            text = np.append(text, token)
    beams = decode.generate(*args, prompts, new_tokens=3, eos=eos, batch=2, beams=2)
    alone = [decode.generate(*args, [p], new_tokens=3, eos=eos, beams=2)[0] for p in prompts]
    assert all(np.array_equal(a, b) for a, b in zip(beams, alone, strict=True))
    outputs = [[np.array([5, 40, 7]), np.array([9])] for _ in prompts]
    found = scoring.loglik(*args, prompts, outputs, batch=2)
    for prompt, choices, got in zip(prompts, outputs, found, strict=True):
        for tail, value in zip(choices, got, strict=True):
            logp = jax.nn.log_softmax(plain(np.concatenate([prompt, tail])))[len(prompt) - 1 : -1]
            want = sum(float(logp[i, token]) for i, token in enumerate(tail))
            assert abs(float(value) - want) < 1e-3


def test_a_plan_without_a_structure_is_bound_as_ever_and_a_tokenizer_is_needed(setup):
    model, params, _, _, _ = setup
    plan = jp.compose(model, params, 'hylorada_v2', options={'hylorada_v2': {'rank': 4}})
    with pytest.raises(ValueError, match='no tokenizer'):
        train_model.bound(plan, model, None)
