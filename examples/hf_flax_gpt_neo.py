"""Adapters on Hugging Face's own FlaxGPTNeoForCausalLM, its code and its parameters untouched.

transformers 4.57 is the last line with Flax classes; `.ci/hf_flax.sh FOLDER` makes an environment
that has it. The layers are `nn.Dense`, so `jp.bind` sees into them; what it binds here is the
class's own call, with its masks and position ids. Merged parameters go wherever HF takes `params`:
`model.generate(ids, params=merged)`, `model.save_pretrained(folder, params=merged)`.

Run: python examples/hf_flax_gpt_neo.py [--check]
"""

import sys

import jax
import jax.numpy as jnp
import optax
from transformers import FlaxGPTNeoForCausalLM, GPTNeoConfig

import jaxpeft as jp

METHODS = {'lora': jp.methods.lora(rank=4), 'knowhira': jp.methods.knowhira(rank=4)}
TARGETS = 'q_proj,k_proj,v_proj,out_proj,c_fc,c_proj'
CONFIG = GPTNeoConfig(
    vocab_size=48, hidden_size=32, num_layers=2, num_heads=4, window_size=4, initializer_range=0.2,
    attention_types=[[['global', 'local'], 1]], max_position_embeddings=32, bos_token_id=0,
    eos_token_id=47,
)  # fmt: skip
IDS = jnp.arange(24).reshape(2, 12) * 5 % 48


def bind(plan, model):
    """`forward(state, {'params': params}, ids) -> logits` through the class's own call."""
    return jp.bind(plan, lambda variables, ids: model(ids, params=variables['params']).logits)


def fit(plan, forward, state, params, ids, steps=30):
    """(state, losses) after some Adam steps on the next token."""
    optimizer = optax.adam(1e-2)

    def loss(trained, params):
        now = state._replace(params=trained)
        logits = forward(now, {'params': params}, ids)[:, :-1]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()
        return nll + jp.penalty(plan, now, params)

    @jax.jit
    def step(trained, moments, params):
        value, grads = jax.value_and_grad(loss)(trained, params)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(trained, changes), moments, value

    trained, moments, losses = state.params, optimizer.init(state.params), []
    for _ in range(steps):
        trained, moments, value = step(trained, moments, params)
        losses.append(float(value))
    return state._replace(params=trained), losses


def check(model, plan, start, state, losses):
    """What tests/test_examples.py holds this example to."""
    forward, base = bind(plan, model), {'params': model.params}
    assert jnp.array_equal(forward(start, base, IDS), model(IDS).logits)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
    assert all(jax.tree.leaves(moved)), moved
    assert losses[-1] < 0.8 * losses[0]
    logits = forward(state, base, IDS)
    near = 1e-5 * jnp.abs(logits).max()
    merged = model(IDS, params=jp.merge(plan, state, model.params)).logits
    assert jnp.abs(logits - merged).max() < near < jnp.abs(logits - model(IDS).logits).max()
    # The same tree and the same adapter in the package's own GPT-Neo.
    own = jp.models.build(jp.models.from_hf(CONFIG.to_dict()), scan=False)
    assert jnp.abs(logits - jp.bind(plan, own.apply)(state, base, IDS)).max() < near


def main(checked):
    model = FlaxGPTNeoForCausalLM(CONFIG, seed=0)
    for name, method in METHODS.items():
        plan = {jp.targets(model.params, TARGETS): method}
        start = jp.init(plan, jax.random.key(0), model.params)
        state, losses = fit(plan, bind(plan, model), start, model.params, IDS)
        print(f'{name}: {jp.count(state):,} trained, loss {losses[0]:.2f} -> {losses[-1]:.2f}')
        if checked:
            check(model, plan, start, state, losses)
            print(f'{name}: checked')


if __name__ == '__main__':
    main('--check' in sys.argv[1:])
