"""(IA)^3 (Liu et al., NeurIPS 2022, arXiv 2205.05638): learned scales on activations.

    y' = (x W + bias) o l        keys, values
    y' = (x o l) W + bias        the FFN's last layer

As in HF PEFT (`tuners/ia3/layer.py`): an output scale takes the bias with it, and a feed-forward
layer is scaled at its input.
"""

from typing import Any

import jax.numpy as jnp

from jaxpeft import base, near

TARGETS = ('k_proj', 'v_proj', 'down_proj', 'mlp/c_proj')  # those of them that a model has
FEEDFORWARD = ('down_proj', 'c_proj')  # c_proj is GPT-Neo's name for it


def ia3(
    dim: int,
    *,
    feedforward: bool = False,
    stack: tuple[int, ...] = (),
) -> base.Override:
    """(IA)^3: an override of one linear layer's call; the rule matches the LAYER's path.

    One leaf, `scale_l [dim]` of ones, float32: the identity at init. Layers of several sizes take
    a rule each. It could be folded into kernel and bias (`W diag(l)`, `bias o l`, `diag(l) W`), but
    an override has no weight: `jp.merge` refuses it.

    PEFT's form of a layer: `base_model.model.<torch path>.ia3_l`, `[dim, 1]` for an output scale
    and `[1, dim]` for a feed-forward one; the layers with `feedforward` are `feedforward_modules`
    of its config, all of them `target_modules`.

    Args:
      dim: the length of l: the layer's outputs, or its inputs with `feedforward`.
      feedforward: scale the input instead of the output.
      stack: the layer stack of a scanned model, `(num_layers,)`.

    Returns:
      The override.

    Raises:
      ValueError: for a dim below 1; when called on a layer of another size.

    Example:
      >>> import jax, jaxpeft as jp
      >>> plan = {'.*/k_proj': jp.methods.ia3(dim=128), '.*/down_proj': jp.methods.ia3(
      ...     dim=4864, feedforward=True)}
      >>> plan['.*/k_proj'].init(jax.random.key(0)).params['scale_l'].shape
      (128,)
    """
    if dim < 1:
        raise ValueError(f'ia3: dim must be at least 1, got {dim}')
    spec = {'name': 'ia3', 'dim': dim, 'feedforward': feedforward, 'stack': list(stack)}

    def init(key):
        del key
        return base.State({'scale_l': jnp.ones(dim, jnp.float32)}, {})

    def call(state, layer, x, *args, key=None, side=None, **kwargs):
        del key, side
        scale = state.params['scale_l']
        if feedforward:
            return layer(_scaled(x, scale), *args, **kwargs)
        return _scaled(layer(x, *args, **kwargs), scale)

    return base.Override(spec, init, call, base.no_penalty)


def dimensions(config: Any, target: str) -> dict[str, Any]:
    """The factory's dimensions on a model: `dim` and `feedforward` of the layer `target` ends in.

    Raises:
      ValueError: for a target that is no linear layer of a decoder block.
    """
    name = target.replace('.', '/').rsplit('/', 1)[-1]
    keys = config.num_kv_heads * config.head_dim
    outputs = {
        'q_proj': config.num_heads * config.head_dim, 'k_proj': keys, 'v_proj': keys,
        'o_proj': config.hidden_size, 'out_proj': config.hidden_size,
        **dict.fromkeys(('gate_proj', 'up_proj', 'c_fc', *FEEDFORWARD), config.intermediate_size),
    }  # fmt: skip
    if name not in outputs:
        raise ValueError(f'ia3: no layer is called {name!r}; {near.nearest(name, outputs)}')
    return {'dim': outputs[name], 'feedforward': name in FEEDFORWARD}


def _scaled(x: base.Array, scale: base.Array) -> base.Array:
    """`x [..., dim] o scale [dim]` in float32, back in x's dtype."""
    if x.shape[-1] != scale.shape[0]:
        raise ValueError(
            f'ia3: the layer has {x.shape[-1]} features, the scale dim={scale.shape[0]}'
        )
    wide = scale.reshape((1,) * (x.ndim - 1) + (-1,))
    return (x.astype(jnp.float32) * wide).astype(x.dtype)
