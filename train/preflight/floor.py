"""The least arithmetic of an update, from shapes alone.

With T tokens and N labelled positions an update, rows of S tokens, and the sums over the kernels
`[n, m]` of all layers (an adapted one of rank r):

    forward     sum 2 n m T                       every kernel once
    backward    sum 2 n m T                       the gradient of its input; none of a frozen kernel
    attention   sum 6 T (S + 1) H d               q k^T and p v: 2 forward, 4 backward, of the half
                                                  that a causal mask leaves
    head        4 N D V                           logits of labelled positions, and their backward
    adapter     lora, dora    sum 4 r (n + m) T   x A and dy B^T, dA and dB
                              and the less of     2 r (n + m) T for x A B and dx as a branch,
                                                  4 n m r for W + s A B, in both passes
                kasa          the same, and of    6 r (n + m) T and 8 n m r, for the tail U Vt too
                hira,         sum 2 n m T + 6 n m r   M = x^T dy cannot be had in factors once W is
                knowhira                          multiplied in; A B, (M o W) B^T and A^T (M o W)

The sum W + s A B is for a float32 base: rounded to bfloat16 it would lose the update (see
`jaxpeft.lowrank`). Not taken off: the input gradient of the first layer's attention, which a scan
of equal layers cannot leave out. Not counted: whatever `--remat`, the chunked head and a kernel for
the attention (the scores) compute twice on purpose, element-wise work, DoRA's norms, the penalty.
"""

import math
from typing import NamedTuple

import jaxpeft as jp
from train.preflight.program import Job, Shape

# of r (n + m) T as a branch beside W, of n m r in a sum with it: x A B and dx, of kasa's tail too
FACTORED = {'lora': (2, 4), 'dora': (2, 4), 'kasa': (6, 8)}
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
    each = 6 * tokens * (shape.width + 1) * config.num_heads * config.head_dim
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
        micro = job.config.optim.grad_acc
        if name in HADAMARD:
            one = 2 * n * m * tokens + 6 * n * m * rank * micro
        else:
            one = 4 * rank * (n + m) * tokens + _beside(FACTORED[name], job, n, m, rank, tokens)
        total += one * math.prod(stack)
    return total


def _beside(term: tuple[int, int], job: Job, n: int, m: int, rank: int, tokens: int) -> int:
    """Low-rank terms as a branch, or in the sum with W where a float32 base lets that be."""
    branch, summed = term[0] * rank * (n + m) * tokens, term[1] * n * m * rank
    exact = job.config.model.dtype == 'float32'
    return min(branch, summed * job.config.optim.grad_acc) if exact else branch
