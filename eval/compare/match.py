"""Equal budgets: the rank at which a method trains as many numbers as the reference."""

import dataclasses
import functools
from typing import Any

import jaxpeft as jp
from eval.compare.entries import BASE, Entry
from jaxpeft.near import nearest
from train import model as models
from train import options
from train.config import Config

PROBES = (2, 4)  # even, since an orthogonal start needs an even rank
NEAR = 3  # ranks tried on either side of what the two probes say


Found = list[tuple[Entry, Config]]  # the entries with their configurations


def equalise(found: Found, reference: str = '') -> tuple[Found, str]:
    """The entries at ranks of equal counts, and the sentence that says so.

    Args:
      found: all entries; those without a rank stay as they are.
      reference: the label that gives the count; '' for the first with a rank.

    Raises:
      ValueError: where the reference has no rank, or an entry's rank cannot be found.
    """
    ranks = {e.label: c for e, c in found if e.method != BASE and ranked(c)}
    fixed = [e.label for e, _ in found if e.own_rank]
    reference = reference or next(iter(ranks), '')
    if reference not in ranks:
        there = nearest(reference, list(ranks)) if ranks else 'none of --methods has one'
        raise ValueError(
            f'--match params needs a method with a rank as reference, got {reference!r}; {there}'
        )
    theirs = ranks[reference]
    count = Counter(theirs)
    target = count(theirs)
    out = []
    for entry, config in found:
        if entry.label in ranks and entry.label not in (reference, *fixed):
            config = with_rank(config, rank_for(config, target, count))
        out.append((entry, config))
    rank = theirs.options[ranked(theirs)[0]]['rank']
    return out, (
        f"Each method's rank is the one that trains nearest to the {target:,} numbers of "
        f'`{reference}` at rank {rank}; methods without a rank, and with one of their own, are as '
        'they are.'
    )


class Counter:
    """Counts what a configuration would train, from shapes: nothing is loaded or allocated.

    Args:
      config: any configuration of the base.
    """

    def __init__(self, config: Config):
        self.model = jp.models.build(
            jp.models.config_of(config.model.model_name), config.model.scan
        )
        self.shapes = jp.models.param_shapes(self.model)
        self._of = functools.cache(self._count)
        self._configs: dict[tuple, Config] = {}

    def __call__(self, config: Config) -> int:
        """The trainable numbers."""
        key = (repr(config.adapter), repr(config.options))
        self._configs[key] = config
        return self._of(key)

    def _count(self, key: tuple) -> int:
        config = self._configs[key]
        plan = models.make_plan(config, self.model, self.shapes)
        return models.count(plan, self.shapes, config.optim.seed)


def ranked(config: Config) -> list[str]:
    """The configuration's methods that have a rank.

    Example:
      >>> from train import cli
      >>> ranked(cli.parse(['--method', 'full'])[0]), ranked(cli.parse(['--method', 'lora'])[0])
      ([], ['lora'])
    """
    return [name for name in config.options if 'rank' in options.settable(name)]


def with_rank(config: Config, rank: int) -> Config:
    """The same at another rank."""
    names = ranked(config)
    chosen = {n: g | {'rank': rank} if n in names else g for n, g in config.options.items()}
    return dataclasses.replace(config, options=chosen)


def rank_for(config: Config, target: int, count: Counter) -> int:
    """The rank whose count is nearest to `target`; of two equally near ones the smaller.

    Counts are affine in the rank, so two probes give the place and its neighbours are counted. With
    layer-wise ranks, which are rounded and no less than 2, they only grow: then the place moves on
    while the best of its neighbours is the last of them.

    Raises:
      ValueError: for a method without a rank, or one that no rank suits.
    """
    if not ranked(config):
        raise ValueError(f'{config.adapter.method} has no rank to match parameters by')
    low, high = (count(with_rank(config, rank)) for rank in PROBES)
    slope = (high - low) / (PROBES[1] - PROBES[0])
    if slope <= 0:
        raise ValueError(
            f'{config.adapter.method} trains {low:,} numbers at every rank: --rank_pattern names '
            'all of its targets, so --match params has nothing to choose'
        )
    place = max(1, round(PROBES[0] + (target - low) / slope))
    found: dict[int, int] = {}
    refused: Any = None
    while True:
        for rank in range(max(1, place - NEAR), place + NEAR + 1):
            try:
                found[rank] = count(with_rank(config, rank))
            except ValueError as error:  # odd for an orthogonal start, above the kernel's
                refused = error
        if not found:
            raise ValueError(
                f'{config.adapter.method} cannot train about {target:,} numbers: {refused}'
            )
        best = min(found, key=lambda rank: (abs(found[rank] - target), rank))
        if abs(best - place) < NEAR:
            return best
        place = best
