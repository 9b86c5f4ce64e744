"""What the methods' own tests compare with: numpy in float64, and one layer of HF PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys


def started(method, kernel, size=0.3):
    """A state away from init: there B = 0 and a magnitude of 1 hide mistakes."""
    return toys.moved(method.init(jax.random.key(0), kernel), jax.random.key(1), size)


def float64(tree):
    """The tree in numpy's float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def triplets(w, part):
    """The sum of some of the singular triplets of W, a slice of them, by numpy in float64."""
    u, s, vt = np.linalg.svd(float64(w), full_matrices=False)
    return (u[:, part] * s[part]) @ vt[part]


def golden(method, **leaves):
    """The output of a method of rank 2 on a kernel, an input and factors given by formula."""
    n, m, r = 5, 4, 2
    w = jnp.asarray(np.sin(1.0 + np.arange(n * m).reshape(n, m) ** 1.3), jnp.float32)
    a = jnp.asarray(np.cos(0.5 + np.arange(n * r).reshape(n, r)) / 2, jnp.float32)
    b = jnp.asarray(np.sin(0.2 + np.arange(r * m).reshape(r, m)) / 2, jnp.float32)
    state = method.init(jax.random.key(0), w)
    params = {'a': a, 'b': b, **{name: jnp.asarray(leaf) for name, leaf in leaves.items()}}
    assert set(params) == set(state.params)
    return method.apply(
        state._replace(params=params), w, jnp.linspace(-1.0, 1.0, 2 * n).reshape(2, n)
    )


def wrap(w, *, layer='linear', **config):
    """PEFT's layer, in training mode, around a torch layer that holds the kernel or table `w`.

    Skips where peft is not installed. `config` is `LoraConfig`'s; adapters of PEFT's own init.
    """
    peft = pytest.importorskip('peft', reason='the oracle is HF PEFT, of the test extra')
    import torch

    torch.manual_seed(0)
    if layer == 'linear':
        inner = torch.nn.Linear(*w.shape, bias=False)
        inner.weight.data = torch.tensor(np.array(w.T, np.float32))
    else:
        inner = torch.nn.Embedding(*w.shape)
        inner.weight.data = torch.tensor(np.array(w, np.float32))
    model = torch.nn.ModuleDict({'inner': inner})
    config = peft.LoraConfig(target_modules=['inner'], **config)
    return peft.inject_adapter_in_model(config, model)['inner'].train()


def leaves_of(layer):
    """The layer's trained tensors under the names that jaxpeft gives them."""
    if 'default' in layer.lora_embedding_A:
        return {'a': layer.lora_embedding_A['default'], 'b': layer.lora_embedding_B['default']}
    leaves = {'a': layer.lora_A['default'].weight, 'b': layer.lora_B['default'].weight}
    if 'default' in getattr(layer, 'lora_magnitude_vector', {}):
        leaves['m'] = layer.lora_magnitude_vector['default'].weight
    if 'default' in getattr(layer, 'lora_diag', {}):
        leaves['diag'] = layer.lora_diag['default']
    return leaves


def read(layer):
    """`{name: numpy array}` in this project's layout: `a [n, r]`, `b [r, m]`."""
    return {name: leaf.detach().numpy().T.copy() for name, leaf in leaves_of(layer).items()}


def write(layer, params):
    """Puts a state's leaves into the layer."""
    import torch

    for name, leaf in leaves_of(layer).items():
        leaf.data = torch.tensor(np.array(params[name]).T.copy())


def mask_dropout(layer, mask):
    """Replaces the layer's dropout by a product with `mask`, the draw of another program."""
    import torch

    class Mask(torch.nn.Module):
        def forward(self, x):
            return x * torch.tensor(np.array(mask))

    layer.lora_dropout['default'] = Mask()


def value_and_grads(layer, x):
    """The output for `x`, and the gradients of `sum(sin(output))` by leaf."""
    import torch

    y = layer(torch.tensor(np.array(x)))
    torch.sin(y).sum().backward()
    grads = {name: leaf.grad.numpy().T for name, leaf in leaves_of(layer).items()}
    return y.detach().numpy(), grads
