"""Adapters on an Equinox module: each `eqx.nn.Linear` gets its adapter by `eqx.tree_at`.

Equinox keeps weights as [out, in], jaxpeft's methods read kernels as [in, out]: a method is given
the transposed view `weight.T`, for `init`, `apply`, `weight` and `penalty` alike, and the merged
kernel goes back transposed. Under jit XLA folds the transpose into the product, so no copy is made.

`eqx.partition` cuts the model into the adapters' trained leaves and all the rest, and the gradient
is with respect to the first part only.

Run: python examples/equinox_module.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxpeft as jp

METHODS = {'lora': jp.methods.lora(rank=4), 'knowhira': jp.methods.knowhira(rank=4)}


class Adapted(eqx.Module):
    """A linear layer beside its adapter: `y = method.apply(state, W.T, x) + bias`."""

    linear: eqx.nn.Linear
    state: jp.State
    method: jp.Method  # functions and options, no arrays: static to every eqx.filter_*

    def __call__(self, x, *, key=None):
        y = self.method.apply(self.state, self.linear.weight.T, x, key=key)
        return y if self.linear.bias is None else y + self.linear.bias

    def merged(self):
        weight = self.method.weight(self.state, self.linear.weight.T).T
        return eqx.tree_at(lambda linear: linear.weight, self.linear, weight)


def nodes(kind):
    """A function from a model to all its modules of one class."""
    is_kind = lambda node: isinstance(node, kind)
    return lambda model: [n for n in jax.tree.leaves(model, is_leaf=is_kind) if is_kind(n)]


def adapt(model, method, key):
    """The model with an adapter on each linear layer."""
    linears = nodes(eqx.nn.Linear)(model)
    keys = jax.random.split(key, len(linears))
    states = [method.init(k, linear.weight.T) for k, linear in zip(keys, linears, strict=True)]
    new = [Adapted(linear, one, method) for linear, one in zip(linears, states, strict=True)]
    return eqx.tree_at(nodes(eqx.nn.Linear), model, new)


def merge(model):
    """The plain model again, with the adapters folded into its weights."""
    new = [adapted.merged() for adapted in nodes(Adapted)(model)]
    return eqx.tree_at(nodes(Adapted), model, new)


def split(model):
    """(trained, frozen): the adapters' `state.params`, and everything else."""
    leaves = lambda tree: jax.tree.leaves([a.state.params for a in nodes(Adapted)(tree)])
    nothing = jax.tree.map(lambda _: False, model)
    return eqx.partition(model, eqx.tree_at(leaves, nothing, [True] * len(leaves(model))))


def loss_of(trained, frozen, x, y):
    """The mean squared error and the methods' penalties."""
    model = eqx.combine(trained, frozen)
    extra = sum(a.method.penalty(a.state, a.linear.weight.T) for a in nodes(Adapted)(model))
    return jnp.mean((jax.vmap(model)(x) - y) ** 2) + extra


def fit(model, x, y, steps=60):
    """(model, losses) after some Adam steps."""
    trained, frozen = split(model)
    optimizer = optax.adam(1e-2)
    moments, losses = optimizer.init(trained), []

    @eqx.filter_jit
    def step(trained, moments):
        value, grads = eqx.filter_value_and_grad(loss_of)(trained, frozen, x, y)
        changes, moments = optimizer.update(grads, moments)
        return eqx.apply_updates(trained, changes), moments, value

    for _ in range(steps):
        trained, moments, value = step(trained, moments)
        losses.append(float(value))
    return eqx.combine(trained, frozen), losses


def main():
    base = eqx.nn.MLP(16, 4, 48, depth=2, activation=jnp.tanh, key=jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (64, 16)), jnp.ones((64, 4))
    for name, method in METHODS.items():
        model, losses = fit(adapt(base, method, jax.random.key(2)), x, y)
        gap = jnp.abs(jax.vmap(model)(x) - jax.vmap(merge(model))(x)).max()
        print(f'{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, bound against merged {gap:.0e}')


if __name__ == '__main__':
    main()
