"""(IA)^3 here and in HF PEFT, with the same scales on the same weights: the same logits."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from tests import overrides_tiny as tiny
from tests.models_tiny import CONFIGS, jit, tokens

torch = pytest.importorskip('torch', reason='compares with torch (extra: test)')
transformers = pytest.importorskip('transformers', reason='compares with transformers')
peft = pytest.importorskip('peft', reason='compares with peft (extra: test)')

LAYERS = {'gpt_neo': ['k_proj', 'v_proj', 'c_proj'], 'qwen2': ['k_proj', 'v_proj', 'down_proj']}


def their_model(kind, folder):
    """A torch model with random biases, saved plain, then wrapped with random scales."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**CONFIGS[kind] | tiny.CHANGES[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    wanted = peft.IA3Config(
        task_type='CAUSAL_LM', target_modules=LAYERS[kind], feedforward_modules=LAYERS[kind][2:]
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of peft's own making, on any model
        wrapped = peft.get_peft_model(model, wanted).eval()
    scales = {n: p for n, p in wrapped.named_parameters() if 'ia3_l' in n}
    with torch.no_grad():
        for parameter in scales.values():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return wrapped, {name: p.detach().numpy().ravel() for name, p in scales.items()}


@pytest.mark.parametrize('kind', tiny.KINDS)
def test_ia3_is_pefts(kind, tmp_path):
    theirs, scales = their_model(kind, tmp_path)
    model, params, _ = jp.models.load(tmp_path)
    plan = tiny.plan('ia3', kind)
    leaves = {}
    for site in jp.tree.sites(plan, params):
        layer = site.path.rsplit('/', 1)[-1]
        rows = [scales[name] for name in sorted(scales) if f'.{layer}.' in name]
        leaves[f'{site.node}/scale_l'] = jnp.asarray(np.stack(rows))
    assert len(scales) == 2 * len(leaves) == 6
    state = jp.State(jp.paths.nest(leaves), {})
    rows = tokens(2, tiny.T)
    forward = jp.bind(plan, model.apply)
    ours = jit(lambda t: forward(state, {'params': params}, t))(rows)
    plain = jit(lambda t: model.apply({'params': params}, t))(rows)
    with torch.no_grad():
        want = theirs(torch.tensor(rows, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, want, atol=1e-4, rtol=0)
    assert np.abs(plain - want).max() > 1e-2
    assert jp.count(state) == sum(s.size for s in scales.values())
