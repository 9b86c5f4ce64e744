"""The pictures of a search: what was tried when, every trial's curve, and what mattered."""

import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

BLUE, ORANGE, GREY, DARK = '#4c78a8', '#f58518', '#b8bec6', '#2b2f36'
DPI = 150
ENOUGH = 4  # complete trials below which an importance would be made of nothing
MANY = 30  # from here on it is worth a look
WIDE = 5.0  # the largest loss over the smallest from which the axis is logarithmic


def write(
    folder: pathlib.Path, study: 'optuna.Study', trials: Sequence[dict[str, Any]]
) -> list[pathlib.Path]:
    """Writes history.png and importance.png where there is something to see; gives their paths."""
    import matplotlib

    matplotlib.use('Agg')
    made = []
    found = importances(study, trials)
    for name, figure in (
        ('history', history(trials)),
        ('importance', importance(found, trials) if found else None),
    ):
        if figure is not None:
            made.append(folder / f'{name}.png')
            figure.savefig(made[-1], dpi=DPI)
    return made


def importances(study: 'optuna.Study', trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Name -> share of the importance (PED-ANOVA, Watanabe et al. 2023), largest first.

    It says which names told the best trials from the others; empty for fewer than ENOUGH complete
    trials or a space of one name.
    """
    from optuna import importance

    complete = [trial for trial in trials if trial['outcome'] == 'complete']
    if len(complete) < ENOUGH or len(complete[0]['values']) < 2:
        return {}
    with warnings.catch_warnings():
        # It warns where few trials are in the best tenth, which the picture's title says too.
        warnings.simplefilter('ignore')
        return importance.get_param_importances(
            study, evaluator=importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        )


def _axes(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(axis='y', color=GREY, lw=0.5, alpha=0.6)
    return figure, axes


def history(trials: Sequence[dict[str, Any]]):
    """Best loss so far by trial, and each trial's validation curve; None without any."""
    seen = [trial for trial in trials if trial['val_loss'] is not None]
    if not seen:
        return None
    figure, (left, right) = _axes(9.6, 3.8, 2)
    complete = [trial for trial in seen if trial['outcome'] == 'complete']
    cut = [trial for trial in seen if trial['outcome'] != 'complete']
    _points(left, complete, 'o', BLUE, 'complete')
    _points(left, cut, 'x', GREY, 'pruned: of fewer updates')
    _points(left, [t for t in complete if t['default']], 's', DARK, 'as it was given')
    if complete:
        losses = [trial['val_loss'] for trial in complete]
        best = [min(losses[: i + 1]) for i in range(len(losses))]
        numbers = [trial['trial'] for trial in complete]
        left.step(numbers, best, where='post', color=ORANGE, lw=1.6, label='best so far')
    left.set(xlabel='trial', ylabel='best validation loss')
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    lowest = min(complete, key=lambda t: t['val_loss'], default=None)
    for trial in seen:
        steps = [int(step) for step in trial['validation']]
        chosen = trial is lowest
        right.plot(
            steps,
            list(trial['validation'].values()),
            color=ORANGE if chosen else BLUE if trial['outcome'] == 'complete' else GREY,
            lw=2.0 if chosen else 0.9,
            marker='' if trial['outcome'] == 'complete' else 'x',
            ms=5,
            markevery=[-1],
            zorder=3 if chosen else 2,
        )
    right.set(xlabel='update', ylabel='validation loss')
    right.xaxis.get_major_locator().set_params(integer=True)
    widened((left, right), seen)
    return figure


def widened(axes, seen: Sequence[dict[str, Any]]) -> None:
    """A logarithmic axis where one bad trial would flatten all others."""
    values = [loss for trial in seen for loss in trial['validation'].values()]
    if 0 < WIDE * min(values) < max(values):
        for axis in axes:
            axis.set_yscale('log')
            axis.yaxis.set_major_formatter('{x:g}')


def _points(axis, trials: Sequence[dict[str, Any]], marker: str, colour: str, label: str) -> None:
    if trials:
        x, y = [t['trial'] for t in trials], [t['val_loss'] for t in trials]
        axis.plot(x, y, marker, color=colour, ms=6, label=label, ls='', zorder=3)


def importance(found: dict[str, float], trials: Sequence[dict[str, Any]]):
    """Bars of `importances`."""
    n = sum(trial['outcome'] == 'complete' for trial in trials)
    figure, (axis,) = _axes(6.4, 1.2 + 0.35 * len(found))
    names = list(found)[::-1]
    axis.barh(names, [100 * found[name] for name in names], color=BLUE)
    axis.grid(visible=False, axis='y')
    axis.grid(axis='x', color=GREY, lw=0.5, alpha=0.6)
    axis.set_xlabel('share of the importance in % (PED-ANOVA)')
    few = '' if n >= MANY else ': few, so a hint and no more'
    axis.set_title(f'what told the best of {n} complete trials apart{few}', fontsize=9, loc='left')
    return figure
