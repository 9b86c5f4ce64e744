"""Small Linen models that use every kind of layer and transform that `bind` must see through."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxpeft as jp


class Block(nn.Module):
    """Heads out of and into a DenseGeneral, then a two-layer FFN of Dense; residual both times."""

    width: int = 16
    heads: int = 4
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, _=None):
        size = self.width // self.heads
        kwargs = {'dtype': self.dtype, 'param_dtype': self.dtype}
        y = nn.RMSNorm(name='norm', **kwargs)(x)
        y = nn.tanh(nn.DenseGeneral((self.heads, size), name='heads', **kwargs)(y))
        x = x + nn.DenseGeneral(self.width, axis=(-2, -1), name='out', **kwargs)(y)
        y = nn.gelu(nn.Dense(3 * self.width, name='up', **kwargs)(x))
        return x + nn.Dense(self.width, use_bias=False, name='down', **kwargs)(y), None


class Toy(nn.Module):
    """Blocks in one of four forms: 'plain', 'remat', 'scan', 'scan+remat'; then a Dense head."""

    form: str = 'plain'
    depth: int = 3
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if 'remat' in self.form else Block
        if 'scan' in self.form:
            block = nn.scan(
                block, variable_axes={'params': 0}, split_rngs={'params': True}, length=self.depth
            )
            x, _ = block(dtype=self.dtype, name='layers')(x, None)
        else:
            for i in range(self.depth):
                x, _ = block(dtype=self.dtype, name=f'block_{i}')(x)
        return nn.Dense(5, name='head', dtype=self.dtype, param_dtype=self.dtype)(x)


FORMS = ('plain', 'remat', 'scan', 'scan+remat')


def plan_of(method, form):
    """All layers of `Toy`: Dense kernels as they are, DenseGeneral ones with their views."""
    stack = 'l ' if 'scan' in form else ''
    return {
        r'.*/(up|down)/kernel|head/kernel': method,
        r'.*/heads/kernel': jp.on(method, stack + 'i (h d)'),
        r'.*/out/kernel': jp.on(method, stack + '(h d) o'),
    }


def setup(form, method, key, dtype=jnp.float32):
    """(model, params, plan, state, x) of one toy; x is [2, 7, 16]."""
    model = Toy(form, dtype=dtype)
    x = jax.random.normal(jax.random.fold_in(key, 1), (2, 7, 16), dtype)
    params = jax.jit(model.init)(key, x)['params']
    plan = plan_of(method, form)
    return model, params, plan, jp.init(plan, key, params), x


def moved(state, key, size=0.1):
    """The state with noise on every trained leaf: a point away from the special one at init."""
    leaves, treedef = jax.tree.flatten(state.params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + size * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return state._replace(params=jax.tree.unflatten(treedef, noisy))


def worst(x, y):
    """The largest absolute difference of two arrays or trees, as a float."""
    gaps = jax.tree.map(
        lambda a, b: float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max()), x, y
    )
    return max(jax.tree.leaves(gaps))
