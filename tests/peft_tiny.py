"""Tiny bases that torch and we load from one folder, for the exchange with PEFT."""

import functools

import jax
import numpy as np
import pytest

import jaxpeft as jp
from jaxpeft import paths
from tests.models_tiny import config, jit, random_params, tokens

torch = pytest.importorskip('torch', reason='compares with torch (extra: test)')
transformers = pytest.importorskip('transformers', reason='compares with transformers')

# peft 0.21 asks transformers 5 by an old name.
PEFT_WARNS = pytest.mark.filterwarnings(
    'ignore:`is_gradient_checkpointing` is deprecated:FutureWarning'
)
TARGETS = {'gpt_neo': ['q_proj', 'v_proj', 'c_fc'], 'qwen2': ['q_proj', 'k_proj', 'down_proj']}
UNTIED = {'tie_word_embeddings': False}


class Base:
    """A base on disk with our two layouts of it, loaded once, and fresh torch models."""

    def __init__(self, folder, kind, **changes):
        self.folder, self.kind = folder, kind
        model = jp.models.build(config(kind, **changes))
        jp.models.save_pretrained(folder, model, random_params(model))
        self.loaded = {scan: jp.models.load(folder, scan=scan)[:2] for scan in (True, False)}
        self.rows = tokens(2, 12)

    def torch(self):
        return transformers.AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def plan(self, method, scan=True, names=None):
        return {jp.targets(self.loaded[scan][1], names or TARGETS[self.kind]): method}

    def logits(self, plan, state, scan=True):
        model, params = self.loaded[scan]
        forward = jp.bind(plan, model.apply)
        return np.asarray(
            jit(lambda s, p, t: forward(s, {'params': p}, t))(state, params, self.rows)
        )

    @functools.cached_property
    def plain_logits(self):
        """The base's own."""
        model, params = self.loaded[True]
        return np.asarray(jit(lambda p, t: model.apply({'params': p}, t))(params, self.rows))


def torch_logits(model, rows):
    with torch.no_grad():
        return model(torch.tensor(rows, dtype=torch.long)).logits.numpy()


def peft_logits(base, folder):
    """The logits of `PeftModel.from_pretrained` over the base's own weights."""
    peft = pytest.importorskip('peft', reason='compares with peft (extra: test)')
    return torch_logits(peft.PeftModel.from_pretrained(base.torch(), folder).eval(), base.rows)


def perturbed(state, seed=0, size=0.3):
    """The state with noise on every trained leaf: no leaf may be left out of a file unnoticed.

    What lies beyond a layer's own rank stays zero, as it does in training.
    """
    rng = np.random.default_rng(seed)
    noise = lambda leaf: leaf + np.float32(size) * rng.standard_normal(leaf.shape, np.float32)
    leaves = dict(paths.flatten(jax.tree.map(noise, state.params)))
    for path, rank in paths.flatten(state.consts):
        site = path.removesuffix('/rank')
        if site != path:
            a, b = leaves[f'{site}/a'], leaves[f'{site}/b']
            kept = np.arange(a.shape[-1]) < np.asarray(rank)[..., None]
            leaves[f'{site}/a'] = a * kept[..., None, :]
            leaves[f'{site}/b'] = b * kept[..., :, None]
    return state._replace(params=paths.nest(leaves))


def trained(base, plan, scan=True):
    """A perturbed state of a plan over a base."""
    return perturbed(jp.init(plan, jax.random.key(0), base.loaded[scan][1]))
