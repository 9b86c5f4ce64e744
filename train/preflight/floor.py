"""The least arithmetic of an update, from shapes alone.

With T tokens and N labelled positions an update, rows of S tokens, and the sums over the kernels
`[n, m]` of all layers (an adapted one of rank r):

    forward     sum 2 n m T                       every kernel once
    backward    sum 2 n m T                       the gradient of its input; none of a frozen kernel
    attention   sum 12 T S H d                    q k^T and p v: 4 forward, 8 backward
    head        4 N D V                           logits of labelled positions, and their backward
    adapter     lora, dora    sum 6 r (n + m) T   x A B forward; dx, dA and dB backward
                kasa          sum 10 r (n + m) T  and the tail x U Vt, forward and dx
                hira,         sum 2 n m T + 6 n m r   M = x^T dy cannot be had in factors once W is
                knowhira                          multiplied in; A B, (M o W) B^T and A^T (M o W)

Not taken off: the input gradient of the first layer's attention, which a scan of equal layers
cannot leave out; the masked half of the attention, of which only a kernel leaves blocks out. Not
counted: whatever `--remat`, the chunked head and a kernel for the attention (the scores: 14 T S H d
in place of 12) compute twice on purpose, element-wise work, DoRA's norms, the penalty.
"""

import math
from typing import NamedTuple

import jaxpeft as jp
from train.preflight.program import Job, Shape

FACTORED = {'lora': 6, 'dora': 6, 'kasa': 10}
HADAMARD = ('hira', 'knowhira')


class Floor(NamedTuple):
    """FLOPs of an update on all devices together; `adapter` is None where no formula is known."""

    forward: int
    backward: int
    attention: int
    head: int
    adapter: int | None

    @property
    def total(self) -> int | None:
        """The sum, None without the adapter's part."""
        if self.adapter is None:
            return None
        return self.forward + self.backward + self.attention + self.head + self.adapter


def floor(job: Job, shape: Shape) -> Floor:
    """The floor of an update of this shape."""
    config = job.model.config
    tokens = shape.micro * shape.rows * shape.width
    kernels = sum(
        math.prod(leaf.shape)
        for path, leaf in jp.paths.flatten(job.base)
        if path.endswith('/kernel') and not path.startswith('lm_head')
    )
    each = 12 * tokens * shape.width * config.num_heads * config.head_dim
    head = 4 * shape.micro * shape.labels * config.hidden_size * config.vocab_size
    linear = 2 * kernels * tokens
    return Floor(linear, linear, each * config.num_layers, head, _adapter(job, tokens))


def _adapter(job: Job, tokens: int) -> int | None:
    leaves = dict(jp.paths.flatten(job.base))
    total = 0
    for site in jp.tree.sites(job.plan, job.base):
        spec = site.method.spec
        name, rank = spec['name'], spec.get('rank', 0)
        known = name in FACTORED or name in HADAMARD
        if not known or site.view is None or not site.path.endswith('/kernel'):
            return None
        *stack, n, m = leaves[site.path].shape
        one = FACTORED.get(name, 0) * rank * (n + m) * tokens
        if name in HADAMARD:
            one = 2 * n * m * tokens + 6 * n * m * rank * job.config.optim.grad_acc
        total += one * math.prod(stack)
    return total
