"""S2, shifted sparse attention (LongLoRA: Chen et al., ICLR 2024, arXiv 2309.12307).

    heads < H/2:   query i sees key j   iff   i // g == j // g
    the others:    query i sees key j   iff   (i + g/2) // g == (j + g/2) // g

and both only where the dense core lets them: same segment, not in the future. Shifting half of the
heads by half a group carries information across groups; scores cost T g instead of T^2. LongLoRA's
roll joins the end of the text to its start in one group; here they stay apart. The reference
program (hylorada's `s2_attention.py`) has no causal mask and shifts by layer instead of by head.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxpeft import base

TARGETS = ('core',)
TRAINING_ONLY = True  # validation and evaluation leave the rule out
WHOLE_EXAMPLES = True  # groups are cut from the row: copies of a shared token see different keys


def s2(*, group: int = 2048, stack: tuple[int, ...] = ()) -> base.Override:
    """S2: an override of the attention core without parameters, for TRAINING on long texts.

    Equal to masked dense attention with the mask above; dense where T <= g, and with a key/value
    cache (there are more keys than queries). A model trained with it is used with dense attention:
    leave the rule out of the plan that evaluates, the other rules' state stays as it is. Groups
    are cut from the row as it is laid out: padding on the left moves their borders, padding on the
    right and packing do not change what a token may see. Positions come with the tokens, so rotary
    angles (applied before) and windows hold.

    Args:
      group: g, even; LongLoRA takes a quarter of the length.
      stack: the layer stack of a scanned model, `(num_layers,)`.

    Returns:
      The override.

    Raises:
      ValueError: for an odd group or one below 2.

    Example:
      >>> import jax, jaxpeft as jp
      >>> jp.count(jp.methods.s2(group=256).init(jax.random.key(0)))
      0
    """
    if group < 2 or group % 2:
        raise ValueError(
            f's2: group must be even and at least 2, got {group}; '
            f'the nearest valid choice is {max(2, group + 1)}'
        )
    spec = {'name': 's2', 'group': group, 'stack': list(stack)}

    def init(key):
        del key
        return base.State({}, {})

    def call(state, core, q, k, v, *, key=None, side=None, **kwargs):
        del state, key, side
        length = q.shape[1]
        if length <= group or k.shape[1] != length:
            return core(q, k, v, **kwargs)
        k, v = (_aligned(x, q.shape[2]) for x in (k, v))
        plain, shifted = zip(
            *(jnp.split(x, [x.shape[2] // 2], axis=2) for x in (q, k, v)), strict=True
        )
        parts = [
            _grouped(core, *heads, group, shift, kwargs)
            for heads, shift in ((plain, 0), (shifted, group // 2))
            if heads[0].shape[2]  # of a single head there is no first half
        ]
        return jnp.concatenate(parts, axis=2)

    return base.Override(spec, init, call, base.no_penalty)


def dimensions(config: Any, target: str) -> dict[str, Any]:
    """The factory's dimensions on a model: none."""
    del config, target
    return {}


def _aligned(x: base.Array, heads: int) -> base.Array:
    """Keys or values whose heads split in half as the queries' do; repeated where they do not."""
    return x if x.shape[2] % 2 == 0 else jnp.repeat(x, heads // x.shape[2], axis=2)


def _grouped(
    core: Callable[..., base.Array],
    q: base.Array,
    k: base.Array,
    v: base.Array,
    group: int,
    shift: int,
    where: dict[str, Any],
) -> base.Array:
    """The core on groups as rows of a batch, the first group filled up with `shift` pads."""
    batch, length = q.shape[:2]
    after = -(length + shift) % group
    cells = (length + shift + after) // group

    def split(x: base.Array) -> base.Array:
        widths = [(0, 0), (shift, after), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, widths).reshape(batch * cells, group, *x.shape[2:])  # pads: segment 0

    per_token = {name: split(where[name]) for name in ('q_pos', 'k_pos', 'q_seg', 'k_seg')}
    out = core(split(q), split(k), split(v), **{**where, **per_token})
    out = out.reshape(batch, cells * group, *out.shape[2:])
    return out[:, shift : shift + length]
