"""Adapters that the real `peft` made and saved load here: same logits, and training goes on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxpeft as jp
from tests.models_tiny import jit
from tests.peft_tiny import PEFT_WARNS, UNTIED, Base, torch, torch_logits, trained

peft = pytest.importorskip('peft', reason='compares with peft (extra: test)')

pytestmark = PEFT_WARNS
WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
LORA = {'r': 4, 'lora_alpha': 6, 'target_modules': ['q_proj', 'v_proj']}


def lora(**options):
    return peft.LoraConfig(**LORA | options)


def kasa():
    config = peft.tuners.lora.config.KasaConfig(beta=2e-4, gamma=3e-3)
    return lora(kasa_config=config)


# (family, scanned, config): every way to name targets, every method, both layouts.
CASES = {
    'list': ('gpt_neo', True, lambda: lora(task_type='CAUSAL_LM')),
    'regex, ranks by layer': (
        'gpt_neo',
        False,
        lambda: lora(
            target_modules=r'transformer\.h\.[02]\..*\.(q_proj|out_proj)',
            rank_pattern={'h.0.attn.attention.q_proj': 2, 'out_proj': 3},
            alpha_pattern={r'transformer\.h\.2\..*': 5},
        ),
    ),
    'all-linear but some': (
        'qwen2',
        True,
        lambda: lora(target_modules='all-linear', exclude_modules=['down_proj', 'o_proj']),
    ),
    'some layers': ('qwen2', False, lambda: lora(layers_to_transform=[0, 2], use_rslora=True)),
    'ranks by module': (
        'qwen2',
        True,
        lambda: lora(rank_pattern={'q_proj': 2}, alpha_pattern={'v_proj': 1}, use_rslora=True),
    ),
    'pissa': ('gpt_neo', True, lambda: lora(init_lora_weights='pissa')),
    'olora': ('qwen2', False, lambda: lora(init_lora_weights='olora')),
    'dora': ('qwen2', True, lambda: lora(use_dora=True)),
    'dora-pissa': ('gpt_neo', False, lambda: lora(use_dora=True, init_lora_weights='pissa')),
    'kasa': ('qwen2', True, kasa),
    'hira': ('gpt_neo', False, lambda: peft.HiraConfig(r=4, target_modules=['k_proj', 'c_fc'])),
    'hira ranks': (
        'qwen2',
        True,
        lambda: peft.HiraConfig(
            r=4, target_modules=['k_proj', 'up_proj'], rank_pattern={'k_proj': 2}
        ),
    ),
    'ia3': (
        'qwen2',
        True,
        lambda: peft.IA3Config(
            target_modules=['k_proj', 'v_proj', 'down_proj'], feedforward_modules=['down_proj']
        ),
    ),
}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    return {kind: Base(tmp_path_factory.mktemp(kind), kind) for kind in ('gpt_neo', 'qwen2')}


def saved_by_peft(base, config, folder):
    """Logits of a perturbed adapter that peft made on the base and saved to the folder."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base.torch(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return torch_logits(model, base.rows)


@pytest.mark.parametrize('case', CASES)
def test_an_adapter_of_peft(bases, case, tmp_path):
    """Same logits here; written again, the same tensors bit by bit."""
    kind, scan, config = CASES[case]
    base = bases[kind]
    theirs = saved_by_peft(base, config(), tmp_path / 'theirs')
    params = base.loaded[scan][1]
    plan, state = jp.import_peft(tmp_path / 'theirs', params)
    assert np.abs(theirs - base.plain_logits).max() > 0.1
    np.testing.assert_allclose(base.logits(plan, state, scan), theirs, atol=1e-4, rtol=0)

    if 'pissa' in case or case == 'olora':
        return  # written for the original base, as twice the rank: tests/test_peft_export.py
    jp.export_peft(tmp_path / 'ours', plan, state, params)
    before, after = (load_file(tmp_path / n / WEIGHTS) for n in ('theirs', 'ours'))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])


@pytest.mark.parametrize('case', ['list', 'some layers'])
def test_training_goes_on(bases, case, tmp_path):
    """Every leaf of the imported state gets a gradient, and a step along it lowers the loss."""
    kind, scan, config = CASES[case]
    base = bases[kind]
    saved_by_peft(base, config(), tmp_path)
    model, params = base.loaded[scan]
    plan, state = jp.import_peft(tmp_path, params)
    forward = jp.bind(plan, model.apply)

    def loss(trained):
        logits = forward(state._replace(params=trained), {'params': params}, base.rows)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), base.rows[..., None], -1)
        return -chosen.mean()

    before, gradient = jit(jax.value_and_grad(loss))(state.params)
    assert all(bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(gradient))
    stepped = jax.tree.map(lambda x, g: x - 0.05 * g, state.params, gradient)
    assert jit(loss)(stepped) < before


def test_an_embedding_with_the_base_s_copy_beside_it(tmp_path):
    """peft saves the base's table with an adapted `embed_tokens`; another table is refused."""
    base = Base(tmp_path / 'base', 'qwen2', **UNTIED)
    with pytest.warns(UserWarning, match='save_embedding_layers'):
        theirs = saved_by_peft(base, lora(target_modules=['embed_tokens']), tmp_path / 'x')
    params = base.loaded[True][1]
    key = 'base_model.model.model.embed_tokens.base_layer.weight'
    tensors = load_file(tmp_path / 'x' / WEIGHTS)
    assert key in tensors
    plan, state = jp.import_peft(tmp_path / 'x', params)
    np.testing.assert_allclose(base.logits(plan, state), theirs, atol=1e-4, rtol=0)
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / 'x' / WEIGHTS)
    with pytest.raises(ValueError, match=f'unexpected .1.: {key}'):
        jp.import_peft(tmp_path / 'x', params)


@pytest.mark.parametrize('scan', [True, False])
def test_written_read_and_written_again(bases, scan, tmp_path):
    """Both files, byte by byte; and the plan of one layout names the other's kernels too."""
    base = bases['qwen2']
    params = base.loaded[scan][1]
    plan = base.plan(jp.methods.lora(rank=3, alpha=2.5, dropout=0.1), scan)
    jp.export_peft(tmp_path / 'a', plan, trained(base, plan, scan), params, base_name='org/x')
    again, state = jp.import_peft(tmp_path / 'a', params)
    jp.export_peft(tmp_path / 'b', again, state, params, base_name='org/x')
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    other = jp.init(again, jax.random.key(0), base.loaded[not scan][1])
    assert jp.count(other) == jp.count(state)


@pytest.fixture(scope='module')
def folder(bases, tmp_path_factory):
    """A good folder for the errors to be made in."""
    base = bases['gpt_neo']
    plan = base.plan(jp.methods.lora(rank=3), names=['q_proj', 'v_proj'])
    path = tmp_path_factory.mktemp('adapter')
    jp.export_peft(path, plan, trained(base, plan), base.loaded[True][1], base_name='org/base')
    return path


def edited(folder, tmp_path, fields, change=None):
    """A copy of a folder with other config fields and tensors."""
    path = tmp_path / 'edited'
    shutil.copytree(folder, path)
    config = json.loads((path / CONFIG).read_text()) | fields
    (path / CONFIG).write_text(json.dumps(config))
    if change is not None:
        tensors = load_file(path / WEIGHTS)
        save_file(change(tensors), path / WEIGHTS)
    return path


UNSUPPORTED = {
    'lora_bias': True,
    'bias': 'all',
    'modules_to_save': ['lm_head'],
    'use_qalora': True,
    'megatron_config': {'a': 1},
    'trainable_token_indices': [1],
    'layer_replication': [[0, 2]],
    'task_type': 'SEQ_CLS',
    'fan_in_fan_out': True,
    'some_field_of_tomorrow': 7,
}


@pytest.mark.parametrize('name', UNSUPPORTED)
def test_a_field_that_is_not_computed_is_refused(bases, folder, name, tmp_path):
    path = edited(folder, tmp_path, {name: UNSUPPORTED[name]})
    with pytest.raises(ValueError, match=rf'unsupported config fields .1.: {name}='):
        jp.import_peft(path, bases['gpt_neo'].loaded[True][1])


KEY = 'base_model.model.transformer.h.1.attn.attention.q_proj.lora_A.weight'


def test_one_error_lists_all_that_is_wrong(bases, folder, tmp_path):
    def change(tensors):
        tensors['base_model.model.score.weight'] = tensors.pop(KEY)
        other = KEY.replace('h.1', 'h.2')
        return tensors | {other: tensors[other][:, 1:]}

    path = edited(folder, tmp_path, {'lora_bias': True, 'init_lora_weights': 'loftq'}, change)
    with pytest.raises(ValueError, match='does not fit') as caught:
        jp.import_peft(path, bases['gpt_neo'].loaded[True][1])
    said = str(caught.value)
    for part in (
        "made for 'org/base'",
        'unsupported config fields (1): lora_bias=True',
        "unsupported values (1): init_lora_weights='loftq'",
        f'missing (1): {KEY}',
        'unexpected (1): base_model.model.score.weight',
        f'misshaped (1): {KEY.replace("h.1", "h.2")} is (3, 15), expected (3, 16)',
    ):
        assert part in said


ERRORS = {
    'rank': ({'r': 5}, r'misshaped \(16\): .* expected \(5, 16\)'),
    'no rank': ({'r': None}, r'missing config fields \(1\): r$'),
    'no such layer': ({'target_modules': ['x_proj']}, "targets .1.: target_modules=.'x_proj'."),
    'a tied head': ({'target_modules': 'lm_head'}, r'lm_head \(tied'),
    'another method': ({'peft_type': 'LOHA'}, 'peft_type must be one of .*LOHA.*'),
    'narrower targets': ({'target_modules': ['q_proj']}, r'unexpected \(8\): .*v_proj'),
    'one scan': ({'layers_to_transform': [0, 1]}, r'unexpected \(8\)'),
}


@pytest.mark.parametrize('case', ERRORS)
def test_a_config_that_does_not_fit(bases, folder, case, tmp_path):
    fields, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        jp.import_peft(edited(folder, tmp_path, fields), bases['gpt_neo'].loaded[True][1])


def test_another_base(bases, folder, tmp_path):
    """Another width is a list of shapes, another family has none of the targets."""
    wide = Base(tmp_path / 'wide', 'gpt_neo', hidden_size=24).loaded[True][1]
    with pytest.raises(ValueError, match=r'misshaped \(16\): .*is \(3, 16\), expected \(3, 24\)'):
        jp.import_peft(folder, wide)
    with pytest.raises(ValueError, match=r'unexpected .16.'):
        jp.import_peft(folder, bases['qwen2'].loaded[True][1])
    with pytest.raises(ValueError, match='no layer of this base has a torch name'):
        jp.import_peft(folder, {'w': jnp.ones((4, 4))})


def test_a_scan_wants_every_layer_and_one_scale(bases, tmp_path):
    base = bases['gpt_neo']
    _, params = base.loaded[False]
    plan = {jp.targets(params, ['q_proj'], layers=[0, 1, 3]): jp.methods.lora(rank=2)}
    jp.export_peft(tmp_path / 'a', plan, jp.init(plan, jax.random.key(0), params), params)
    with pytest.raises(ValueError, match=r'none for layers \[2\]; load the base unrolled'):
        jp.import_peft(tmp_path / 'a', base.loaded[True][1])
    plan = {
        jp.targets(params, ['q_proj'], layers=[1]): jp.methods.lora(rank=2, alpha=9),
        jp.targets(params, ['q_proj']): jp.methods.lora(rank=2, alpha=4),
    }
    jp.export_peft(tmp_path / 'b', plan, jp.init(plan, jax.random.key(0), params), params)
    with pytest.raises(ValueError, match=r'\(2, 4\), \(2, 9\), \(2, 4\), \(2, 4\).*unrolled'):
        jp.import_peft(tmp_path / 'b', base.loaded[True][1])


def test_layer_wise_ranks_under_a_scan(bases, tmp_path):
    """One alpha/rank for all layers: padded to the largest rank, and cut again when written."""
    base = bases['gpt_neo']
    rule = jp.layerwise(jp.methods.lora(rank=4, alpha=6), [4, 2, 3, 1])
    plan = base.plan(rule, scan=False)
    unrolled = trained(base, plan, scan=False)
    jp.export_peft(tmp_path / 'a', plan, unrolled, base.loaded[False][1])
    again, state = jp.import_peft(tmp_path / 'a', base.loaded[True][1])
    assert jp.count(state) == jp.count(unrolled)
    expected = base.logits(plan, unrolled, scan=False)
    np.testing.assert_allclose(base.logits(again, state), expected, atol=1e-4, rtol=0)
    jp.export_peft(tmp_path / 'b', again, state, base.loaded[True][1])
    assert (tmp_path / 'a' / WEIGHTS).read_bytes() == (tmp_path / 'b' / WEIGHTS).read_bytes()


def test_files_that_are_not_there(bases, folder, tmp_path):
    params = bases['gpt_neo'].loaded[True][1]
    with pytest.raises(FileNotFoundError, match='no PEFT folder'):
        jp.import_peft(tmp_path, params)
    shutil.copy(folder / CONFIG, tmp_path / CONFIG)
    with pytest.raises(FileNotFoundError, match=r'it holds .*adapter_config\.json'):
        jp.import_peft(tmp_path, params)
    (tmp_path / 'adapter_model.bin').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r"torch.load\('adapter_model.bin', weights_only"):
        jp.import_peft(tmp_path, params)
    plan = bases['gpt_neo'].plan(jp.methods.hira(rank=2))
    state = jp.init(plan, jax.random.key(0), params)
    jp.save_adapter(tmp_path / 'own', plan, state, params)
    with pytest.raises(FileNotFoundError, match=r'call jp.load_adapter'):
        jp.import_peft(tmp_path / 'own', params)


def reference_folder(path, config, seed=0):
    """A folder as the reference programs write it, over q_proj of the tiny GPT-Neo (square)."""
    rng = np.random.default_rng(seed)
    pair = lambda: {
        'lora_A': rng.standard_normal((3, 16), np.float32),
        'lora_B': rng.standard_normal((16, 3), np.float32),
    }
    prefix = 'base_model.model.transformer.h.{}.attn.attention.q_proj.{}'
    tensors = {prefix.format(i, k): v for i in range(4) for k, v in pair().items()}
    shared = {'r_ab': 3, 'lora_alpha': 32, 'lora_dropout': 0.05, 'target_modules': ['q_proj']}
    path.mkdir()
    save_file(tensors, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(shared | config))
    return [[tensors[prefix.format(i, k)] for k in ('lora_A', 'lora_B')] for i in range(4)]


def merged_q(base, plan, state):
    """The merged q_proj kernels and the base's, in torch's [out, in]."""
    params = base.loaded[True][1]
    after = jp.merge(plan, state, params)
    kernel = lambda tree: np.asarray(
        tree['transformer']['h']['attn']['attention']['q_proj']['kernel']
    )
    return kernel(after).transpose(0, 2, 1), kernel(params).transpose(0, 2, 1)


def test_the_hira_program_s_folder(bases, tmp_path):
    """W o (1 + (A^T B^T)^T); its peft_type is LORA, only `r_ab` tells."""
    base = bases['gpt_neo']
    factors = reference_folder(tmp_path / 'x', {'peft_type': 'LORA', 'init_a': 'kaiming'})
    plan, state = jp.import_peft(tmp_path / 'x', base.loaded[True][1])
    after, before = merged_q(base, plan, state)
    for new, w, (a, b) in zip(after, before, factors, strict=True):
        np.testing.assert_allclose(new, w * (1 + (a.T @ b.T).T), atol=1e-5)


def test_the_knowhira_program_s_folder(bases, tmp_path):
    """W o (1 + alpha A^T G B^T), not transposed, with G of the real kernel and half-open gates."""
    base = bases['gpt_neo']
    config = {'peft_type': 'KNOWHIRA', 'knowledge_alpha': 0.7, 'spectrum_init_scale': 0.05}
    factors = reference_folder(tmp_path / 'x', config)
    with pytest.warns(UserWarning, match='never saves its gates.*sigma is computed'):
        plan, state = jp.import_peft(tmp_path / 'x', base.loaded[True][1])
    after, before = merged_q(base, plan, state)
    for new, w, (a, b) in zip(after, before, factors, strict=True):
        sigma = np.linalg.svd(w, compute_uv=False)[:3]
        gate = np.diag(0.5 * sigma / sigma[0])
        np.testing.assert_allclose(new, w * (1 + 0.7 * a.T @ gate @ b.T), atol=1e-4)


def test_the_knowhira_program_s_folder_on_an_oblong_layer(bases, tmp_path):
    """Its update has the wrong orientation there, so no such file can have been trained."""
    reference_folder(tmp_path / 'x', {'peft_type': 'KNOWHIRA', 'rand_R': True})
    config = json.loads((tmp_path / 'x' / CONFIG).read_text()) | {'target_modules': ['c_fc']}
    (tmp_path / 'x' / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'targets .*c_fc .*square') as caught:
        jp.import_peft(tmp_path / 'x', bases['gpt_neo'].loaded[True][1])
    assert 'rand_R=True' in str(caught.value)
