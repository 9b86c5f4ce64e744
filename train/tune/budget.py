"""How many numbers a trial would train, told before anything is trained."""

from typing import Any

from train import model as models
from train.config import Config
from train.model import Built
from train.tune import space as spaces
from train.tune.space import Space


def count(config: Config, built: Built) -> int:
    """The trainable numbers that act, from shapes alone; per-layer ranks are computed.

    Raises:
      ValueError: for a rank that a kernel cannot hold, or targets that match nothing.
    """
    plan = models.make_plan(config, built.model, built.params)
    return models.count(plan, built.params, config.optim.seed)


def smallest(config: Config, space: Space, built: Built) -> dict[str, Any]:
    """The value of each name with which a trial trains the fewest numbers.

    It builds the ends of every range and every choice once, as shapes, the others as configured.

    Returns:
      name -> value, of those names that the number depends on.

    Raises:
      ValueError: for a value that this model or method refuses, naming it.
    """
    found = {}
    for name, range_ in space.items():
        sizes = {}
        for value in range_.values:
            try:
                sizes[value] = count(spaces.apply(config, {name: value}), built)
            except ValueError as error:
                raise ValueError(
                    f'the search would try {name}={value}: {error}. '
                    f'Narrow it: --space FILE.yaml with {name}: {range_.plain()} less that value'
                ) from error
        if len(set(sizes.values())) > 1:
            found[name] = min(sizes, key=lambda value: sizes[value])
    return found
