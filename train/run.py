"""`python -m train.run --method knowhira`: train, evaluate before and after, report.

The only file of `train` that imports `eval`.
"""

import pathlib
import sys
from collections.abc import Sequence

import jaxpeft as jp
from train import cli, content, errors, feed, loop, model, outs, results, rundir
from train import config as configs
from train.config import Config
from train.stop import MESSAGE, Stop

FURTHER = """
That was the small model and data set of the package. A real run:
  python -m train.run --preset knowhira-gpt-neo-1.3b-r32
or with your own:
  python -m train.run --method knowhira --model_name FOLDER_OR_HUB_ID --dataset FILE.jsonl"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when it did, 2 after an error that the user can mend."""
    return errors.guard(_program, argv)


def _program(argv: Sequence[str]) -> None:
    config, notes = cli.parse(argv)
    for note in notes:
        print(note)
    with Stop() as stop, rundir.claim(config) as place:
        run(config, place, stop)


def run(config: Config, place: rundir.Place, stop: Stop) -> None:
    """One run, from what its folder holds to its results."""
    from eval import perplexity, report
    from eval.run import evaluate

    if config.run.out:
        outs.check_free(pathlib.Path(config.run.out), configs.identity(config), configs.FREE)
    if place.results:
        print(f'{place.folder} holds this run, finished; its results are')
        return finish(config, place, place.results)
    print(f'{"continuing" if place.resumed else "starting"} {place.folder}')
    built = model.setup(config, fresh=not place.resumed)
    kernels = content.kernels(built.plan, built.params)
    rundir.check_content(place.folder, {'adapted kernels': kernels})
    data = feed.make(config, built.tokenizer, built.mesh)
    rows = results.benchmark_rows(config)
    probe = results.Probe(evaluate, perplexity.measure, rows, data.held_text)
    print(model.summary(built))
    before = results.before(probe, config, built, place.folder)
    outcome = loop.train(config, built, data, place.folder, stop)
    if not outcome.finished:
        return print(MESSAGE)
    after = results.after(probe, config, built, place.folder, outcome)
    found = results.build(config, jp.count(outcome.state), outcome.ledger, before, after)
    rundir.write_json(place.folder / 'results.json', found)
    report.write(place.folder)
    finish(config, place, found)


def finish(config: Config, place: rundir.Place, found: dict) -> None:
    """Prints the results, where they are, and how to go on."""
    results.show(found)
    if config.run.out:
        rundir.write_json(pathlib.Path(config.run.out), found)
    for name in ('adapter', 'metrics.jsonl', 'results.json', 'report.md'):
        print(place.folder / name)
    if config.model.model_name == config.data.dataset == 'embedded':
        print(FURTHER)


if __name__ == '__main__':
    sys.exit(main())
