"""Merged exports: transformers' torch classes load them with the logits of our bound model."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests.models_tiny import jit
from tests.peft_tiny import Base, perturbed, torch_logits, trained, transformers

METHODS = {
    ('gpt_neo', True): jp.methods.knowhira(rank=3),
    ('gpt_neo', False): jp.methods.kasa(rank=2),
    ('qwen2', True): jp.methods.dora(rank=2),
    ('qwen2', False): jp.methods.lora(rank=3, init='pissa'),
}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    return {kind: Base(tmp_path_factory.mktemp(kind), kind) for kind in ('gpt_neo', 'qwen2')}


def logits_of(folder, rows, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return torch_logits(model.eval(), rows)


@pytest.mark.parametrize(('kind', 'scan'), METHODS)
def test_torch_gives_our_logits(bases, kind, scan, tmp_path):
    base, method = bases[kind], METHODS[kind, scan]
    plan = base.plan(method, scan)
    state = trained(base, plan, scan)
    ours = base.logits(plan, state, scan)
    assert np.abs(ours - base.plain_logits).max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert jp.export_merged(tmp_path, plan, state, *base.loaded[scan]) == 0.0
    np.testing.assert_allclose(logits_of(tmp_path, base.rows), ours, atol=1e-4, rtol=0)


def test_a_tied_embedding_merges_into_lookup_and_head(bases, tmp_path):
    base = bases['gpt_neo']
    plan = base.plan(jp.methods.lora(rank=2), names=['wte'])
    state = trained(base, plan)
    jp.export_merged(tmp_path, plan, state, *base.loaded[True])
    ours = base.logits(plan, state)
    np.testing.assert_allclose(logits_of(tmp_path, base.rows), ours, atol=1e-4, rtol=0)


def test_the_model_card_says_what_was_done(bases, tmp_path):
    base = bases['gpt_neo']
    plan = base.plan(jp.methods.knowhira(rank=2, knowledge_alpha=0.7))
    jp.export_merged(tmp_path, plan, trained(base, plan), *base.loaded[True])
    card = (tmp_path / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: transformers\n')
    for part in (
        f'Base model: {base.folder}.',
        '| knowhira | `{"rank": 2, "knowledge_alpha": 0.7,',
        'Merged in float32, written in float32: 3 of 3 adapted weights differ from the base.',
        'the float32 merge, unrounded',
    ):
        assert part in card
    assert 'base_model:' not in card  # a folder of this machine is no name on the hub
    assert (tmp_path / 'generation_config.json').exists()


def test_bfloat16_warns_with_the_difference_that_there_is(bases, tmp_path):
    """The figure is that of the written files, measured here on the same batch."""
    base = bases['qwen2']
    plan = base.plan(jp.methods.lora(rank=2))
    state = trained(base, plan)
    model, params = base.loaded[True]
    with pytest.warns(UserWarning, match='rounded to bfloat16 move the logits') as caught:
        said = jp.export_merged(tmp_path, plan, state, model, params, dtype=jnp.bfloat16)
    assert f'{said:.3g}' in str(caught[0].message)
    assert f'up to {said:.3g}.' in (tmp_path / 'README.md').read_text()
    probe = np.random.default_rng(0).integers(0, 61, (2, 16), dtype=np.int32)
    merged = jp.merge(plan, state, params)
    exact = jit(lambda p, t: model.apply({'params': p}, t))(merged, probe)
    rounded = logits_of(tmp_path, probe, dtype='float32')
    measured = np.abs(np.asarray(exact) - rounded).max()
    assert measured > 1e-3
    np.testing.assert_allclose(said, measured, atol=1e-4)


def test_a_merge_that_changes_nothing_is_refused(bases, tmp_path):
    """An untrained LoRA; a HiRA whose deltas bfloat16 rounds away, which float32 keeps."""
    base = bases['gpt_neo']
    model, params = base.loaded[True]
    plan = base.plan(jp.methods.lora(rank=2))
    state = jp.init(plan, jax.random.key(0), params)
    with pytest.raises(ValueError, match='changes none of the 3 adapted weights in float32'):
        jp.export_merged(tmp_path / 'x', plan, state, model, params)

    # On a base in bfloat16: 1 + 1e-5 is 1 in 8 bits.
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    plan = base.plan(jp.methods.hira(rank=2))
    state = perturbed(jp.init(plan, jax.random.key(0), short), size=1e-5)
    with pytest.raises(ValueError, match='none of the 3 adapted weights in bfloat16'):
        jp.export_merged(tmp_path / 'x', plan, state, model, short, dtype=jnp.bfloat16)
    assert not (tmp_path / 'x').exists()
    assert jp.export_merged(tmp_path / 'x', plan, state, model, short) == 0.0


def test_what_cannot_merge_is_refused(bases, tmp_path):
    base = bases['gpt_neo']
    model, params = base.loaded[False]
    plan = {'.*/k_proj': jp.methods.ia3(dim=16)}
    state = jp.init(plan, jax.random.key(0), params)
    with pytest.raises(ValueError, match='ia3 depends on its input and has no merged weight'):
        jp.export_merged(tmp_path / 'x', plan, state, model, params)
    assert not (tmp_path / 'x').exists()
