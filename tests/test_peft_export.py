"""Adapters trained here load in the real `peft` on the same torch weights with the same logits."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxpeft as jp
from jaxpeft.peft import fields
from tests.peft_tiny import PEFT_WARNS, UNTIED, Base, peft_logits, trained

peft = pytest.importorskip('peft', reason='compares with peft (extra: test)')

pytestmark = PEFT_WARNS
KINDS = ('gpt_neo', 'qwen2')
METHODS = {
    'lora': jp.methods.lora(rank=4, alpha=6),
    'rslora': jp.methods.lora(rank=4, alpha=3, rslora=True, dropout=0.1),
    'pissa': jp.methods.lora(rank=3, alpha=7, init='pissa'),
    'olora-rslora': jp.methods.lora(rank=3, rslora=True, init='olora'),
    'dora': jp.methods.dora(rank=4),
    'dora-pissa': jp.methods.dora(rank=2, init='pissa'),
    'hira': jp.methods.hira(rank=4),
    'kasa': jp.methods.kasa(rank=4, alpha=6, beta=1e-3),
    'lora-layerwise': jp.methods.lora(rank=4, alpha=6, rslora=True),
    'hira-layerwise': jp.methods.hira(rank=4),
}


@pytest.fixture(scope='module', params=KINDS)
def base(request, tmp_path_factory):
    return Base(tmp_path_factory.mktemp(request.param), request.param)


def ia3_plan(base, scan):
    """Keys, values and the FFN's input, scanned and unrolled."""
    model, _ = base.loaded[scan]
    c = model.config
    stack = (c.num_layers,) if scan else ()
    last = {'gpt_neo': 'c_proj', 'qwen2': 'down_proj'}[base.kind]
    keys = jp.methods.ia3(dim=c.num_kv_heads * c.head_dim, stack=stack)
    fed = jp.methods.ia3(dim=c.intermediate_size, feedforward=True, stack=stack)
    return {'.*/(k_proj|v_proj)': keys, f'.*/mlp/{last}': fed}


def plan_of(base, name, scan):
    if name == 'ia3':
        return ia3_plan(base, scan)
    method = METHODS[name]
    if name.endswith('-layerwise'):
        ranks = [4, 2, 3, 1][: base.loaded[scan][0].config.num_layers]
        method = jp.layerwise(method, ranks)
    return base.plan(method, scan)


CASES = [
    *(('gpt_neo', n, True) for n in ('lora', 'dora-pissa', 'kasa', 'ia3', 'lora-layerwise')),
    *(('gpt_neo', n, False) for n in ('rslora', 'hira')),
    *(('qwen2', n, True) for n in ('rslora', 'olora-rslora', 'hira', 'hira-layerwise')),
    *(('qwen2', n, False) for n in ('lora', 'dora', 'pissa', 'kasa', 'ia3')),
]


@pytest.mark.parametrize(('base', 'name', 'scan'), CASES, indirect=['base'])
def test_peft_gives_our_logits(base, name, scan, tmp_path):
    plan = plan_of(base, name, scan)
    state = trained(base, plan, scan)
    ours = base.logits(plan, state, scan)
    assert np.abs(ours - base.plain_logits).max() > 0.1
    jp.export_peft(tmp_path, plan, state, base.loaded[scan][1])
    np.testing.assert_allclose(peft_logits(base, tmp_path), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize('base', ['qwen2'], indirect=True)
def test_both_layouts_write_the_same_bytes(base, tmp_path):
    plan = base.plan(METHODS['lora'])
    state = trained(base, plan)
    jp.export_peft(tmp_path / 'scanned', plan, state, base.loaded[True][1])
    jp.save_adapter(tmp_path / 'own', plan, state, base.loaded[True][1])
    plan, state = jp.load_adapter(tmp_path / 'own', base.loaded[False][1])
    jp.export_peft(tmp_path / 'unrolled', plan, state, base.loaded[False][1])
    for name in ('adapter_model.safetensors', 'adapter_config.json'):
        scanned, unrolled = (tmp_path / way / name for way in ('scanned', 'unrolled'))
        assert scanned.read_bytes() == unrolled.read_bytes()


@pytest.mark.parametrize('base', ['gpt_neo'], indirect=True)
def test_several_rules_and_a_subset_of_layers(base, tmp_path):
    """Ranks and alphas by rule, one layer alone: patterns that name just those modules."""
    _, params = base.loaded[False]
    plan = {
        jp.targets(params, ['q_proj'], layers=[1]): jp.methods.lora(rank=2, alpha=9),
        jp.targets(params, ['q_proj', 'v_proj'], layers=[0, 1]): jp.methods.lora(rank=4, alpha=3),
    }
    state = trained(base, plan, scan=False)
    jp.export_peft(tmp_path, plan, state, params, base_name='org/base')
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert (config['r'], config['lora_alpha']) == (4, 3)
    assert list(config['rank_pattern'].values()) == [2]
    assert list(config['alpha_pattern'].values()) == [9]
    assert len(config['target_modules']) == 4
    assert config['base_model_name_or_path'] == 'org/base'
    ours = base.logits(plan, state, scan=False)
    np.testing.assert_allclose(peft_logits(base, tmp_path), ours, atol=1e-4, rtol=0)


def test_an_untied_embedding_and_head(tmp_path):
    base = Base(tmp_path / 'base', 'gpt_neo', **UNTIED)
    plan = base.plan(METHODS['lora'], names=['wte', 'lm_head'])
    state = trained(base, plan)
    jp.export_peft(tmp_path / 'adapter', plan, state, base.loaded[True][1])
    ours = base.logits(plan, state)
    np.testing.assert_allclose(peft_logits(base, tmp_path / 'adapter'), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize('base', ['gpt_neo'], indirect=True)
def test_pissa_is_written_for_the_original_base(base, tmp_path):
    """Untrained it is the base itself: [A, A0] and [B, -B0] cancel; twice the rank and alpha."""
    plan = base.plan(METHODS['pissa'])
    _, params = base.loaded[True]
    jp.export_peft(tmp_path, plan, jp.init(plan, jax.random.key(0), params), params)
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert (config['r'], config['lora_alpha'], config['init_lora_weights']) == (6, 14, True)
    np.testing.assert_allclose(peft_logits(base, tmp_path), base.plain_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('kind', 'cls'),
    [('LORA', peft.LoraConfig), ('HIRA', peft.HiraConfig), ('IA3', peft.IA3Config)],
)
def test_the_config_has_the_fields_that_peft_writes(kind, cls, tmp_path):
    """All of them and no more, with PEFT's own neutral values."""
    cls().save_pretrained(tmp_path)
    written = json.loads((tmp_path / 'adapter_config.json').read_text())
    table = fields.BY_TYPE[kind]
    assert written.keys() == table.keys()
    ours_to_say = {'r', 'lora_alpha', 'peft_type', 'peft_version', 'task_type', 'inference_mode'}
    same = {k: v for k, v in written.items() if k not in ours_to_say}
    assert same == {k: v for k, v in table.items() if k not in ours_to_say}
    assert set(table) <= {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize('base', ['qwen2'], indirect=True)
def test_the_file_is_what_peft_saves_again(base, tmp_path):
    """Loaded and saved by peft, the tensors are the same ones, bit by bit, and no others."""
    plan = base.plan(METHODS['dora'])
    jp.export_peft(tmp_path / 'ours', plan, trained(base, plan), base.loaded[True][1])
    theirs = peft.PeftModel.from_pretrained(base.torch(), tmp_path / 'ours')
    theirs.save_pretrained(tmp_path / 'theirs')
    ours, again = (
        load_file(tmp_path / n / 'adapter_model.safetensors') for n in ('ours', 'theirs')
    )
    assert ours.keys() == again.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, again[key])


REFUSED = {
    'no form': ({'knowhira': 'q_proj'}, 'no form for .knowhira.*jp.export_merged'),
    'two methods': ({'lora': 'q_proj', 'dora': 'v_proj'}, 'one method with one set of options'),
    'two options': ({'lora': 'q_proj', 'rslora': 'v_proj'}, 'one set of options'),
    'tied': ({'lora': 'wte'}, 'is tied'),
}


@pytest.mark.parametrize('base', ['qwen2'], indirect=True)
@pytest.mark.parametrize('case', REFUSED)
def test_what_peft_cannot_hold_is_refused(base, case, tmp_path):
    rules, message = REFUSED[case]
    known = METHODS | {'knowhira': jp.methods.knowhira(rank=2)}
    _, params = base.loaded[True]
    here = {'wte': {'gpt_neo': 'wte', 'qwen2': 'embed_tokens'}[base.kind]}
    plan = {jp.targets(params, [here.get(n, n)]): known[m] for m, n in rules.items()}
    state = jp.init(plan, jax.random.key(0), params)
    with pytest.raises(ValueError, match=message):
        jp.export_peft(tmp_path / 'x', plan, state, params)
    assert not (tmp_path / 'x').exists()


def test_another_tree_has_no_torch_names(tmp_path):
    params = {'layer': {'kernel': jax.numpy.ones((4, 6))}}
    plan = {'layer/kernel': METHODS['lora']}
    state = jp.init(plan, jax.random.key(0), params)
    with pytest.raises(ValueError, match='transformer, model, lm_head'):
        jp.export_peft(tmp_path, plan, state, params)
