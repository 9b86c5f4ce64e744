"""The least FLOPs of a training step, by formula.

N tokens, L layers, kernels W [n, m], rank r, hidden size D, vocabulary V, K labelled tokens, rows
of T tokens. Frozen kernels get no gradient; nothing lies below the first layer's q, k and v, so
their inputs get none either (`below`: 1 where a gradient goes on, else 0).

    kernel, not adapted    2 N n m (1 + below)
    attention of a layer   2 N (T + 1) D forward, twice that backward (what a causal mask leaves)
    head                   4 K D V: logits, and the gradient of their input
    LoRA, the less of      x A, (x A) B; dy B^T, dB, dA: 2 N r (2 n + 3 m + n below)
      the two              W + A B, again for dx; x A, dy B^T, dB, dA: 2 n m r (1 + below) and
                           4 N r (n + m)
    HiRA, KnowHiRA         A B: 2 n m r; x^T dy: 2 N n m; dA, dB: 4 n m r; the product itself is
                           the kernel's, with another matrix
    DoRA, HyLoRADA         LoRA; without the sum the norm by factors too: A^T W, 2 n m r, and the
                           rest, 2 r^2 (n + m). Of the sum it is read off
    KaSA                   LoRA, and the tail x U Vt: 2 N r (n + m) (1 + below), in the sum
                           2 n m r (1 + below)
    penalties              Grams and their gradients: 4 r^2 (n + m)   (KnowHiRA, KaSA)
"""

from typing import Any, NamedTuple

HADAMARD, NORMED, PENALIZED = ('hira', 'knowhira'), ('dora', 'hylorada'), ('knowhira', 'kasa')


class Kernel(NamedTuple):
    """A kernel [n, m]; `first` where nothing below it is trained, `adapted` by the method."""

    n: int
    m: int
    first: bool
    adapted: bool


def kernels(config: Any, targets: str) -> list[Kernel]:
    """The linear kernels of a GPT-Neo, layer by layer; targets 'attention' or 'linear'."""
    d, f = config.hidden_size, config.intermediate_size
    found = []
    for layer in range(config.num_layers):
        found += [Kernel(d, d, layer == 0, True)] * 3 + [Kernel(d, d, False, True)]
        found += [Kernel(*shape, False, targets == 'linear') for shape in ((d, f), (f, d))]
    return found


def step(
    config: Any, method: str, targets: str, rank: int, rows: int, length: int, labelled: int
) -> float:
    """FLOPs of one update.

    Args:
      config: of a GPT-Neo.
      method: lora, hira, knowhira, dora, kasa or hylorada.
      targets: 'attention' or 'linear'.
      rank: r.
      rows: of the batch.
      length: T.
      labelled: K.
    """
    tokens = rows * length
    attention = 6 * tokens * (length + 1) * config.hidden_size * config.num_layers
    head = 4 * labelled * config.hidden_size * config.vocab_size
    return float(
        head + attention + sum(_kernel(k, method, rank, tokens) for k in kernels(config, targets))
    )


def _kernel(k: Kernel, method: str, r: int, tokens: int) -> float:
    n, m, below = k.n, k.m, 0 if k.first else 1
    total = 2 * tokens * n * m * (1 + below)
    if not k.adapted:
        return total
    if method in PENALIZED:
        total += 4 * r * r * (n + m)
    if method in HADAMARD:
        return total + 2 * tokens * n * m + 6 * n * m * r
    norm = 2 * n * m * r + 2 * r * r * (n + m) if method in NORMED else 0
    return total + _low_rank(k, r, tokens, tails=1 if method == 'kasa' else 0, norm=norm)


def _low_rank(k: Kernel, r: int, tokens: int, tails: int, norm: float) -> float:
    """LoRA's products, and a tail's, beside W (with `norm`) or summed into it: the lesser."""
    n, m, below = k.n, k.m, 0 if k.first else 1
    beside = norm + 2 * tokens * r * (2 * n + 3 * m + below * n)
    beside += tails * 2 * tokens * r * (n + m) * (1 + below)
    summed = 2 * n * m * r * (1 + below) * (1 + tails) + 4 * tokens * r * (n + m)
    return min(beside, summed)
