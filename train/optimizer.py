"""The optimizer of an adapter: clip, AdamW with weight decay on the factors only, a schedule."""

import jax
import optax

from train.config import Optim

DECAYED = ('a', 'b')  # by leaf name: a stacked magnitude `m` is 2-D too, so shapes cannot tell


def schedule(optim: Optim, total: int) -> optax.Schedule:
    """The learning rate at each update: a linear warm-up, then a cosine, a line or a constant.

    Args:
      optim: lr, schedule and warmup (below 1: a share of `total`).
      total: updates of the run; the cosine and the line reach zero there.

    Returns:
      A function of the number of updates made.

    Example:
      >>> rate = schedule(Optim(lr=1.0, warmup=1, schedule='linear'), total=5)
      >>> [float(rate(n)) for n in (0, 1, 5)]
      [0.5, 1.0, 0.0]
    """
    warmup = warmup_of(optim, total)
    rest = max(total - warmup, 1)
    after = {
        'cosine': optax.cosine_decay_schedule(optim.lr, rest),
        'linear': optax.linear_schedule(optim.lr, 0.0, rest),
        'constant': optax.constant_schedule(optim.lr),
    }[optim.schedule]
    if warmup == 0:
        return after
    rising = optax.linear_schedule(optim.lr / (warmup + 1), optim.lr, warmup)
    return optax.join_schedules([rising, after], [warmup])


def warmup_of(optim: Optim, total: int) -> int:
    """Updates of warm-up in a run of `total`."""
    return round(optim.warmup * total if optim.warmup < 1 else optim.warmup)


def decayed(params: optax.Params) -> optax.Params:
    """True for the leaves that weight decay may shrink: the factors `a` and `b`."""

    def is_factor(path: tuple, leaf: jax.Array) -> bool:
        del leaf
        return path[-1].key in DECAYED

    return jax.tree_util.tree_map_with_path(is_factor, params)


def roles(params: optax.Params) -> optax.Params:
    """LoRA+'s groups by leaf name: 'b' for the factors b, 'rest' for everything else."""

    def role(path: tuple, leaf: jax.Array) -> str:
        del leaf
        return 'b' if path[-1].key == 'b' else 'rest'

    return jax.tree_util.tree_map_with_path(role, params)


def check(optim: Optim, params: optax.Params) -> None:
    """Refuses LoRA+ or weight decay where nothing would follow it.

    Raises:
      ValueError: for an adapter without the factors that they are for.
    """
    if optim.loraplus and 'b' not in jax.tree.leaves(roles(params)):
        raise ValueError(
            '--loraplus moves the factors b faster, and this adapter has none; leave it out, or '
            'add a method with factors such as lora'
        )
    if optim.weight_decay and not any(jax.tree.leaves(decayed(params))):
        raise ValueError(
            f'--weight_decay {optim.weight_decay} shrinks the factors a and b, and this adapter '
            'has none; give 0, or add a method with factors such as lora'
        )


def make(optim: Optim, rate: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW. Gates and magnitudes do not decay.

    Decay would pull a gate to sigmoid(0) = 0.5 and a magnitude to zero, whatever the data says.

    With `optim.loraplus` the factors b move at `loraplus_ratio` times the rate (Hayou et al., ICML
    2024, arXiv 2402.12354: features of a wide model learn where eta_b / eta_a is of order n).
    Magnitudes, gates and all other leaves keep the plain rate; PEFT gives 1-D leaves the larger.
    """
    limit = optim.max_grad_norm
    clip = optax.clip_by_global_norm(limit) if limit else optax.identity()

    def adamw(factor: float) -> optax.GradientTransformation:
        faster = rate if factor == 1.0 else lambda count: factor * rate(count)
        return optax.adamw(faster, weight_decay=optim.weight_decay, mask=decayed)

    if not optim.loraplus:
        return optax.chain(clip, adamw(1.0))
    groups = {'b': adamw(optim.loraplus_ratio), 'rest': adamw(1.0)}
    return optax.chain(clip, optax.partition(groups, roles))
