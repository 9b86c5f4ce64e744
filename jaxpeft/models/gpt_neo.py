"""GPT-Neo (Black et al., 2021, https://doi.org/10.5281/zenodo.5297715).

    x = wte[token] + wpe[position]
    x = x + Attn(LN(x));  x = x + W2 gelu(W1 LN(x))      scores are q k^T, not divided by sqrt(D)
    logits = LN(x) wte^T

Layers alternate between global attention and a local window. Parameter names follow Hugging Face's
Flax class.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxpeft.models import cache as caches
from jaxpeft.models import spread as spreads
from jaxpeft.models.activations import activation
from jaxpeft.models.attention import Attention, Context, LayerInputs, with_kernel
from jaxpeft.models.config import ModelConfig
from jaxpeft.models.head import Embed, make_head, run_head
from jaxpeft.models.norms import LayerNorm
from jaxpeft.models.sharding import split_looked_up, split_rows
from jaxpeft.models.spread import Spread
from jaxpeft.models.stack import layer_inputs, run_layers

Array = jax.Array
INIT = nn.initializers.normal(0.02)


class SelfAttention(nn.Module):
    """Unscaled multi-head attention; biased output projection."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, ctx: Context):
        heads = (self.config.num_heads, self.config.head_dim)

        def project(name: str) -> Array:
            dense = _dense(self, self.config.hidden_size, name, use_bias=False)
            return dense(x).reshape(*x.shape[:-1], *heads)

        q, k, v = (
            spreads.out(ctx.spread, project(name)) for name in ('q_proj', 'k_proj', 'v_proj')
        )
        k, v, new = caches.held(ctx, layer, k, v)
        out = Attention(1.0, ctx, layer, name='core')(
            q,
            k,
            v,
            q_pos=ctx.q_pos,
            k_pos=ctx.k_pos,
            q_seg=ctx.q_seg,
            k_seg=ctx.k_seg,
            window=layer.window,
        )
        out = spreads.home(ctx.spread, out).reshape(x.shape)
        return _dense(self, self.config.hidden_size, 'out_proj')(out), new


class AttentionBox(nn.Module):
    """The level `attn/attention` of Hugging Face's names."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, ctx: Context):
        inner = SelfAttention(self.config, self.dtype, self.param_dtype, name='attention')
        return inner(x, layer, ctx)


class MLP(nn.Module):
    """W2 act(W1 x + b1) + b2."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = activation(self.config.activation)(
            _dense(self, self.config.intermediate_size, 'c_fc')(x)
        )
        return _dense(self, self.config.hidden_size, 'c_proj')(h)


class Block(nn.Module):
    """One layer; returns the residual stream and the new keys and values (None without a cache)."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, ctx: Context):
        parts = (self.config, self.dtype, self.param_dtype)
        h, new = AttentionBox(*parts, name='attn')(
            _norm(self, 'ln_1')(x).astype(x.dtype), layer, ctx
        )
        x = x + h
        x = x + MLP(*parts, name='mlp')(_norm(self, 'ln_2')(x).astype(x.dtype))
        return split_rows(x), new


class Trunk(nn.Module):
    """Tokens to normalized last hidden states; holds the embedding that a tied head attends to."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any
    scan: bool
    remat: str | None

    def setup(self) -> None:
        c = self.config
        embed = {'dtype': self.dtype, 'param_dtype': self.param_dtype, 'embedding_init': INIT}
        self.wte = Embed(c.vocab_size, c.hidden_size, **embed)
        self.wpe = Embed(c.max_positions, c.hidden_size, **embed)
        self.ln_f = LayerNorm(c.norm_eps, self.param_dtype)

    @nn.compact
    def __call__(self, tokens: Array, ctx: Context, layers: LayerInputs):
        x = split_looked_up(self.wte(tokens) + self.wpe(ctx.token_pos))
        x, new = run_layers(self, Block, 'h', x, layers, ctx)
        return self.ln_f(x).astype(self.dtype), new

    def attend(self, x: Array) -> Array:
        """The tied head."""
        return self.wte.attend(x)


class GPTNeo(nn.Module):
    """GPT-Neo with a language-model head; see `jaxpeft.models.load` for the call."""

    config: ModelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan: bool = True
    remat: str | None = None
    attention: str = 'auto'

    def setup(self) -> None:
        parts = (self.config, self.dtype, self.param_dtype)
        self.transformer = Trunk(*parts, self.scan, self.remat)
        if not self.config.tie_embeddings:
            self.lm_head = make_head(self.config.vocab_size, self.param_dtype)

    def __call__(
        self,
        tokens: Array,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        *,
        cache: caches.Cache | None = None,
        select: Array | None = None,
        labels: Array | None = None,
        packed: bool = False,
        spread: Spread | None = None,
    ):
        """tokens: [B, T] int32 -> float32 logits [B, T, V] (and the new cache if one is given).

        Raises:
          ValueError: T exceeds the learned positions. (An explicit position that does gives NaN.)
        """
        length, limit = tokens.shape[1], self.config.max_positions
        if positions is None and segment_ids is None and length > limit:
            raise ValueError(
                f'{self.config.name or "this model"} has max_positions={limit} learned positions, '
                f'got {length} tokens in a row: cut it, or pass positions and segment_ids if packed'
            )
        ctx = caches.context(tokens, positions, segment_ids, cache, spread)
        ctx = with_kernel(self, ctx, positions, segment_ids, packed)
        hidden, new = self.transformer(tokens, ctx, layer_inputs(self.config, cache))
        hidden = caches.fitting(hidden, cache)
        out = run_head(self, _logits, hidden, select, labels, _head(self))
        return out if cache is None else (out, caches.append(cache, ctx, *new))

    @nn.nowrap
    def init_cache(self, batch: int, length: int, dtype: Any = None) -> caches.Cache:
        """An empty key/value cache for `batch` rows of `length` tokens."""
        return caches.init_cache(self.config, batch, length, dtype or self.dtype)


def _head(model: GPTNeo) -> nn.Module:
    return model.transformer.wte if model.config.tie_embeddings else model.lm_head


def _logits(model: GPTNeo, x: Array) -> Array:
    tied = model.config.tie_embeddings
    return model.transformer.attend(x) if tied else model.lm_head(x)


def _dense(module: Any, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        kernel_init=INIT,
        name=name,
    )


def _norm(module: Any, name: str) -> LayerNorm:
    return LayerNorm(module.config.norm_eps, module.param_dtype, name=name)
