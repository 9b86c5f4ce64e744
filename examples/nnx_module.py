"""Adapters on a Flax NNX module: its parameters as a pytree, kernels found by their paths.

`nnx.split` takes a module apart into its graph, its parameters and the rest of its state (dropout
keys, batch statistics); `jp.merge` puts W' in W's place and `nnx.merge` makes the module again. All
are pure, so they lie inside the loss and under jit, and the gradient with respect to the adapter
goes through them. The module's code is not touched, whatever layers it is made of; a kernel that is
no plain matrix takes `jp.on`. The price is a float32 copy of the adapted kernels during a step; a
layer that calls `method.apply` itself, as in equinox_module.py, does without it.

Run: python examples/nnx_module.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpeft as jp
from jaxpeft import paths

METHODS = {'lora': jp.methods.lora(rank=4), 'knowhira': jp.methods.knowhira(rank=4)}


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 3 * width, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(3 * width, width, rngs=rngs)

    def __call__(self, x):
        return x + self.down(self.drop(nnx.tanh(self.up(self.norm(x)))))


class Net(nnx.Module):
    def __init__(self, rngs, width=16, depth=2):
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def split(model):
    """(graph, params, rest): params nested dicts with string keys, `blocks/0/up/kernel`."""
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    return graph, paths.nest(dict(paths.flatten(nnx.to_pure_dict(weights)))), rest


def bind(plan, graph):
    """`forward(state, params, rest, *args) -> (output, rest)`: the module's call with adapters."""

    def forward(state, params, rest, *args):
        merged = nnx.restore_int_paths(jp.merge(plan, state, params))
        model = nnx.merge(graph, merged, rest, copy=True)  # without the copy a call writes to rest
        return model(*args), nnx.state(model, nnx.Not(nnx.Param))

    return forward


def fit(plan, graph, state, params, rest, x, y, steps=60):
    """(state, losses) after some Adam steps."""
    forward, optimizer = bind(plan, graph), optax.adam(1e-2)

    def loss(trained, params, rest):
        now = state._replace(params=trained)
        out, rest = forward(now, params, rest, x)
        return jnp.mean((out - y) ** 2) + jp.penalty(plan, now, params), rest

    @jax.jit
    def step(trained, moments, params, rest):
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(trained, params, rest)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(trained, changes), moments, rest, value

    trained, moments, losses = state.params, optimizer.init(state.params), []
    for _ in range(steps):
        trained, moments, rest, value = step(trained, moments, params, rest)
        losses.append(float(value))
    return state._replace(params=trained), losses


def main():
    x, y = jax.random.normal(jax.random.key(1), (64, 16)), jnp.ones((64, 4))
    for name, method in METHODS.items():
        model = Net(nnx.Rngs(0))
        graph, params, rest = split(model)
        plan = {jp.targets(params, 'up,down'): method}
        state = jp.init(plan, jax.random.key(0), params)
        state, losses = fit(plan, graph, state, params, rest, x, y)
        print(jp.summary(plan, state, params))
        nnx.update(model, nnx.restore_int_paths(jp.merge(plan, state, params)))  # for good
        model.eval()
        error = jnp.mean((model(x) - y) ** 2)
        print(f'{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, of the merged module {error:.3f}')


if __name__ == '__main__':
    main()
