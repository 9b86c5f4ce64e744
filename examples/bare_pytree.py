"""Eight adapters of one base, trained and served in one call: a dict of arrays and a function.

An adapter is a pytree, so eight of them are one with a leading axis, and `jax.vmap` maps over it
while the base stays a single, unmapped argument. Two ways into a function of one's own:

- `jp.merge` gives the effective kernels under the base's names: `net` needs no change, but under
  vmap every adapter has kernels of its own in memory. It is differentiable.
- `method.apply(state, w, x)` stands for `x @ w`: the base's kernels are read once for all adapters,
  and LoRA adds its two thin products. HiRA's and KnowHiRA's update is W-sized in either way.

Run: python examples/bare_pytree.py
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxpeft as jp

ADAPTERS, WIDTH = 8, 16
METHODS = {'lora': jp.methods.lora(rank=4), 'knowhira': jp.methods.knowhira(rank=4)}


def net(params, x):
    """`[..., WIDTH] -> [..., 4]`; anyone's function of a pytree."""
    return jnp.tanh(x @ params['up']) @ params['down']


def merged_net(plan, state, params, x):
    """`net` on the effective kernels."""
    return net(jp.merge(plan, state, params), x)


def applied_net(method, state, params, x):
    """`net` with `method.apply` where its products are: no effective kernel for LoRA."""

    def dense(name, x):
        one = jp.State(state.params[name], state.consts.get(name, {}))
        return method.apply(one, params[name], x)

    return dense('down', jnp.tanh(dense('up', x)))


def serve(method, states, params, x):
    """`x [8, ...]`, a batch for each adapter, in one call; the base is not mapped."""
    return jax.vmap(functools.partial(applied_net, method), in_axes=(0, None, 0))(states, params, x)


def pick(states, i):
    """One adapter of the eight."""
    return jax.tree.map(lambda leaf: leaf[i], states)


def setup(method, key):
    """(plan, params, states, x, y): a base, eight adapters of it, and a task for each."""
    k_up, k_down, k_x, k_y, k_state = jax.random.split(key, 5)
    params = {
        'up': jax.random.normal(k_up, (WIDTH, 48)) / WIDTH**0.5,
        'down': jax.random.normal(k_down, (48, 4)) / 48**0.5,
    }
    plan = {'up|down': method}
    keys = jax.random.split(k_state, ADAPTERS)
    states = jax.vmap(lambda key: jp.init(plan, key, params))(keys)
    x = jax.random.normal(k_x, (ADAPTERS, 32, WIDTH))
    y = net(params, x) + x @ (0.3 * jax.random.normal(k_y, (ADAPTERS, WIDTH, 4)))
    return plan, params, states, x, y


def fit(method, params, states, x, y, steps=100):
    """(states, losses [steps, 8]): all eight adapters trained at once."""
    optimizer = optax.adam(1e-2)  # elementwise: over eight adapters it is eight optimizers

    def loss(trained, consts, params, x, y):
        out = applied_net(method, jp.State(trained, consts), params, x)
        return jnp.mean((out - y) ** 2)

    @jax.jit
    def step(trained, moments, consts, params):
        axes = (0, 0, None, 0, 0)
        losses, grads = jax.vmap(jax.value_and_grad(loss), axes)(trained, consts, params, x, y)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(trained, changes), moments, losses

    trained, moments, losses = states.params, optimizer.init(states.params), []
    for _ in range(steps):
        trained, moments, values = step(trained, moments, states.consts, params)
        losses.append(values)
    return states._replace(params=trained), jnp.stack(losses)


def main():
    for name, method in METHODS.items():
        plan, params, states, x, y = setup(method, jax.random.key(0))
        states, losses = fit(method, params, states, x, y)
        together = serve(method, states, params, x)
        alone = [merged_net(plan, pick(states, i), params, x[i]) for i in range(ADAPTERS)]
        gap = jnp.abs(together - jnp.stack(alone)).max()
        print(
            f'{name}: worst of eight losses {losses[0].max():.3f} -> {losses[-1].max():.3f}, '
            f'one call against eight merged models {gap:.0e}'
        )


if __name__ == '__main__':
    main()
