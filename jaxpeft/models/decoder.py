"""The rotary decoder: Llama (and what is shaped like it, such as SmolLM2), Qwen2/2.5, Qwen3.

    x = E[token]
    x = x + O Attn(rope(q), rope(k), v)      of RMS(x), grouped queries, scores / sqrt(D)
    x = x + Down (silu(Gate h) * Up h)       of h = RMS(x)
    logits = RMS(x) E^T  or  RMS(x) W

Qwen2 has q/k/v biases; Qwen3 normalizes every query and key head before the rotation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxpeft.models import cache as caches
from jaxpeft.models import spread as spreads
from jaxpeft.models.activations import gated
from jaxpeft.models.attention import Attention, Context, LayerInputs, with_kernel
from jaxpeft.models.config import ModelConfig
from jaxpeft.models.head import Embed, make_head, run_head
from jaxpeft.models.norms import RMSNorm
from jaxpeft.models.rope import angles, rotate
from jaxpeft.models.sharding import split_looked_up, split_rows
from jaxpeft.models.spread import Spread
from jaxpeft.models.stack import layer_inputs, run_layers

Array = jax.Array
INIT = nn.initializers.normal(0.02)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, ctx: Context):
        c = self.config

        def project(name: str, heads: int) -> Array:
            y = _dense(self, heads * c.head_dim, name, c.qkv_bias)(x)
            return y.reshape(*x.shape[:-1], heads, c.head_dim)

        q, k = project('q_proj', c.num_heads), project('k_proj', c.num_kv_heads)
        v = project('v_proj', c.num_kv_heads)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, self.param_dtype, name='q_norm')(q)
            k = RMSNorm(c.norm_eps, self.param_dtype, name='k_norm')(k)
        q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        q, k, v = (spreads.out(ctx.spread, y) for y in (q, k, v))
        k, v, new = caches.held(ctx, layer, k, v)
        out = Attention(c.head_dim**-0.5, ctx, layer, name='core')(
            q,
            k,
            v,
            q_pos=ctx.q_pos,
            k_pos=ctx.k_pos,
            q_seg=ctx.q_seg,
            k_seg=ctx.k_seg,
            window=layer.window,
        )
        out = spreads.home(ctx.spread, out).reshape(*x.shape[:-1], c.num_heads * c.head_dim)
        return _dense(self, c.hidden_size, 'o_proj', c.o_bias)(out), new


class MLP(nn.Module):
    """Down (act(Gate x) * Up x)."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate = _dense(self, c.intermediate_size, 'gate_proj', False)(x)
        up = _dense(self, c.intermediate_size, 'up_proj', False)(x)
        return _dense(self, c.hidden_size, 'down_proj', False)(gated(c.activation)(gate, up))


class Block(nn.Module):
    """One layer; returns the residual stream and the new keys and values (None without a cache)."""

    config: ModelConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, ctx: Context):
        parts = (self.config, self.dtype, self.param_dtype)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(self.config.norm_eps, self.param_dtype, name=name)

        h, new = SelfAttention(*parts, name='self_attn')(norm('input_layernorm')(x), layer, ctx)
        x = x + h
        x = x + MLP(*parts, name='mlp')(norm('post_attention_layernorm')(x))
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
        self.embed_tokens = Embed(
            c.vocab_size,
            c.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=INIT,
        )
        self.norm = RMSNorm(c.norm_eps, self.param_dtype)

    @nn.compact
    def __call__(self, tokens: Array, ctx: Context, layers: LayerInputs):
        cos, sin = angles(self.config, ctx.token_pos)
        x = split_looked_up(self.embed_tokens(tokens))
        x, new = run_layers(self, Block, 'layers', x, layers, ctx._replace(cos=cos, sin=sin))
        return self.norm(x), new

    def attend(self, x: Array) -> Array:
        """The tied head."""
        return self.embed_tokens.attend(x)


class Decoder(nn.Module):
    """A rotary decoder with a language-model head; see `jaxpeft.models.load` for the call."""

    config: ModelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan: bool = True
    remat: str | None = None
    attention: str = 'auto'

    def setup(self) -> None:
        parts = (self.config, self.dtype, self.param_dtype)
        self.model = Trunk(*parts, self.scan, self.remat)
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
        """tokens: [B, T] int32 -> float32 logits [B, T, V] (and the new cache if one is given)."""
        ctx = caches.context(tokens, positions, segment_ids, cache, spread)
        ctx = with_kernel(self, ctx, positions, segment_ids, packed)
        hidden, new = self.model(tokens, ctx, layer_inputs(self.config, cache))
        hidden = caches.fitting(hidden, cache)
        out = run_head(self, _logits, hidden, select, labels, _head(self))
        return out if cache is None else (out, caches.append(cache, ctx, *new))

    @nn.nowrap
    def init_cache(self, batch: int, length: int, dtype: Any = None) -> caches.Cache:
        """An empty key/value cache for `batch` rows of `length` tokens."""
        return caches.init_cache(self.config, batch, length, dtype or self.dtype)


def _head(model: Decoder) -> nn.Module:
    return model.model.embed_tokens if model.config.tie_embeddings else model.lm_head


def _logits(model: Decoder, x: Array) -> Array:
    return model.model.attend(x) if model.config.tie_embeddings else model.lm_head(x)


def _dense(module: Any, features: int, name: str, use_bias: bool) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        kernel_init=INIT,
        name=name,
    )
