"""report.md and plots of run directories in every state of completeness."""

import json

import jax
import numpy as np
import pytest

import jaxpeft as jp
from eval import plots, report, rundata, stats, table, tasks
from tests import eval_tiny
from train import cli, config
from train.benchmarks import EIGHT


def evaluation(names, share, seed=0):
    """Figures of a model that is right in `share` of the rows."""
    rng, found = np.random.default_rng(seed), {}
    for name in names:
        labels = tasks.get(name).LABELS
        golds = [labels[i % len(labels)] for i in range(40)]
        said = [g if rng.random() < share else '' for g in golds]
        found[name] = stats.summarise(golds, said, labels)
    return stats.headline(found)


def write_run(folder, method='knowhira', results=True, metrics=True):
    """A run directory as train.run leaves it; returns the adapter's state."""
    folder.mkdir()
    flat = config.to_dict(cli.parse([f'--method={method}'])[0])
    (folder / 'config.json').write_text(json.dumps(flat))
    if metrics:
        lines = [{'step': s, 'loss': 2 / s, 'lr': 1e-3} for s in (1, 2, 3)]
        lines[-1]['val_loss'] = 0.7
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    if results:
        train = {'steps': 3, 'seconds': 9.5, 'tokens_per_second': 12.0, 'trainable': 1234}
        train |= {'best_step': 3, 'best_val_loss': 0.7}
        halves = {
            when: {d: evaluation(EIGHT, share) for d in ('loglik', 'greedy')}
            for when, share in (('before', 0.2), ('after', 0.9))
        }
        found = {'config': flat, 'versions': {'jax': '1.2.3'}, 'train': train, **halves}
        (folder / 'results.json').write_text(json.dumps(found))
    tiny = eval_tiny.make()
    plan = {jp.targets(tiny.params, ['q_proj', 'out_proj']): getattr(jp.methods, method)(rank=3)}
    state = jp.init(plan, jax.random.key(0), tiny.params)
    jp.save_adapter(folder / 'adapter', plan, state, tiny.params)
    return state


def test_a_finished_run(tmp_path):
    state = write_run(tmp_path / 'run')
    path = report.write(tmp_path / 'run')
    text = path.read_text()
    assert path == tmp_path / 'run' / 'report.md'
    assert '1,234 trainable parameters, 3 steps' in text
    assert 'best validation loss 0.7000 at step 3' in text
    after = json.loads((tmp_path / 'run' / 'results.json').read_text())['after']['greedy']
    boolq = after['tasks']['boolq']
    row = next(x for x in text.split('### greedy')[1].splitlines() if x.startswith('| boolq'))
    assert table.percent(boolq['accuracy']) in row
    assert table.interval(boolq['interval']) in row
    assert '| 50.0 |' in row  # the majority of 40 alternating labels
    assert f'| **mean of 8** |  | {table.percent(after["majority_mean"])} |' in text
    assert f'{jp.count(state):,}' in text
    assert '`transformer/h/attn/attention/q_proj/kernel` | 4 | 16 x 16 | 3 |' in text
    assert 'knowledge_alpha: 0.6' in text
    assert 'jax 1.2.3' in text
    for name in ('loss', 'accuracy', 'gate_sigma'):
        assert f'(plots/{name}.png)' in text
        assert (tmp_path / 'run' / 'plots' / f'{name}.png').stat().st_size > 5000


def test_runs_that_lack_parts(tmp_path):
    write_run(tmp_path / 'lora', 'lora', results=False)
    text = report.write(tmp_path / 'lora').read_text()
    assert 'the run is not finished' in text
    assert 'gate_sigma' not in text
    assert 'accuracy.png' not in text
    assert 'plots/loss.png' in text
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'eval').mkdir()
    one = {
        'config': {'model_name': 'some/base', 'method': 'none'},
        'seconds': 2.0,
        'rows_per_second': 20.0,
        'eval': {'loglik': evaluation(['boolq', 'piqa'], 0.5)},
    }
    (tmp_path / 'empty' / 'eval' / 'two.json').write_text(json.dumps(one))
    text = report.write(tmp_path / 'empty').read_text()
    assert 'The bare base model some/base' in text
    assert '**mean of 2 of 8**' in text
    assert 'plots/accuracy.png' in text
    with pytest.raises(FileNotFoundError, match='no run directory'):
        report.write(tmp_path / 'nowhere')


def test_gates_and_sigma_are_those_of_the_adapter(tmp_path):
    state = write_run(tmp_path / 'run', results=False, metrics=False)
    found = rundata.spectra(rundata.read(tmp_path / 'run'))
    assert list(found) == ['q_proj', 'out_proj']
    leaves = state.params['transformer']['h']['attn']['attention']['q_proj']['kernel']
    gate = np.asarray(jax.nn.sigmoid(leaves['gate']))
    np.testing.assert_allclose(found['q_proj']['gate'], gate, rtol=1e-6)
    consts = state.consts['transformer']['h']['attn']['attention']['out_proj']['kernel']
    np.testing.assert_allclose(found['out_proj']['sigma'], consts['sigma'], rtol=1e-6)


def test_plots_show_what_the_files_say(tmp_path):
    write_run(tmp_path / 'run')
    run = rundata.read(tmp_path / 'run')
    (axis,) = plots.loss(run).axes
    training, held = axis.lines
    assert training.get_ydata().tolist() == [2, 1, 2 / 3]
    assert held.get_xdata().tolist() == [3]
    panels = plots.accuracy(run).axes
    assert [p.get_title('left') for p in panels] == ['loglik', 'greedy']
    heights = [bar.get_height() for bar in panels[0].patches]
    for i, when in enumerate(('before', 'after')):
        figures = run.results[when]['loglik']
        expected = [100 * t['accuracy'] for t in figures['tasks'].values()] + [
            100 * figures['mean']
        ]
        assert heights[9 * i : 9 * i + 9] == pytest.approx(expected)
    images = [a.images[0].get_array() for a in plots.gate_sigma(run).axes if a.images]
    assert [np.shape(i) for i in images] == [(4, 3)] * 4


def test_every_evaluation_of_one_decoding_has_its_panel(tmp_path):
    write_run(tmp_path / 'run', results=False)
    (tmp_path / 'run' / 'eval').mkdir()
    found = {'some': {'loglik': 0.2, 'greedy': 0.3}, 'others': {'loglik': 0.9}}
    for name, shares in found.items():
        made = {'eval': {how: evaluation(EIGHT, share) for how, share in shares.items()}}
        (tmp_path / 'run' / 'eval' / f'{name}.json').write_text(json.dumps(made))
    panels = plots.accuracy(rundata.read(tmp_path / 'run')).axes
    titles = sorted(p.get_title('left') for p in panels)
    assert titles == ['greedy', 'loglik, others', 'loglik, some']


def test_tables_fit_and_say_what_is_missing():
    text = table.evaluation(evaluation(EIGHT, 0.5), 'loglik')
    assert max(map(len, text.splitlines())) <= 100
    assert 'mean of 8 ' in text
    for name in EIGHT:
        assert name in text
    assert 'mean of 7 of 8 ' in table.evaluation(evaluation(EIGHT[:7], 0.5), 'loglik')
