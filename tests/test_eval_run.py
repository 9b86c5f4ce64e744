"""The programs: eval.run and eval.generate on a run directory and on a bare base."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import generate, run
from eval.subject import Subject
from tests import eval_tiny
from train import cli as train_cli
from train import config as train_config

BASE = ['--method=none', '--batch=4', '--no_progress']


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """model/ (GPT-Neo of bytes), data/ (two tasks), run/ (a KnowHiRA that acts, not finished)."""
    place = tmp_path_factory.mktemp('world')
    tiny = eval_tiny.make('gpt_neo', vocab=257, positions=384)
    jp.models.save_pretrained(place / 'model', tiny.model, tiny.params, eval_tiny.tokenizer())
    (place / 'data').mkdir()
    for task, rows in eval_tiny.rows('boolq', 'piqa', count=4).items():
        with gzip.open(place / 'data' / f'{task}.test.jsonl.gz', 'wt') as out:
            out.writelines(json.dumps(row._asdict()) + '\n' for row in rows)
    config, _ = train_cli.parse(
        [f'--model_name={place / "model"}', '--dataset=boolq', f'--data_dir={place / "data"}']
    )
    _, params, _ = jp.models.load(place / 'model')
    plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.knowhira(rank=4)}
    state = jp.init(plan, jax.random.key(0), params)
    rng = np.random.default_rng(5)
    state = state._replace(
        params=jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 2, x.shape), x.dtype), state.params)
    )
    jp.save_adapter(place / 'run' / 'adapter', plan, state, params)
    (place / 'run' / 'config.json').write_text(json.dumps(train_config.to_dict(config)))
    return place


@pytest.fixture(autouse=True)
def compiled_here(world, monkeypatch):
    """The programs share compiled code through a folder; here one that goes away."""
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(world / 'compiled'))
    monkeypatch.chdir(world)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def read(path):
    return json.loads(path.read_text())


def test_a_run(world, capsys):
    argv = ['--ckpt=run', '--dataset=boolq,piqa', '--limit=3', '--batch=4', '--predictions']
    assert run.main([*argv, '--no_progress']) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    file = world / 'run' / 'eval' / 'boolq-piqa-loglik-limit3.json'
    for name in (file, file.with_suffix('.predictions.jsonl'), world / 'run' / 'report.md'):
        assert str(name.relative_to(world)) in said
    found = read(file)
    assert set(found) == {'config', 'asked', 'versions', 'seconds', 'rows_per_second', 'eval'}
    assert found['asked'] == {'dataset': 'boolq,piqa', 'limit': 3}
    assert found['config']['method'] == 'knowhira'
    assert found['config']['rows'] == {'boolq': 3, 'piqa': 3}
    figures = found['eval']['loglik']
    assert list(figures['tasks']) == ['boolq', 'piqa']
    assert figures['tasks_in_mean'] == 2
    assert 'mean of 2 of 8' in said

    predictions = file.with_suffix('.predictions.jsonl').read_text().splitlines()
    lines = [json.loads(line) for line in predictions]
    assert [(line['task'], line['row']) for line in lines] == [
        (task, i) for task in ('boolq', 'piqa') for i in range(3)
    ]
    for line in lines:
        assert line['prediction'] == max(line['scores'], key=lambda label: line['scores'][label])
        assert line['correct'] == (line['prediction'] == line['answer'])
    for task, one in figures['tasks'].items():
        assert one['accuracy'] == np.mean([x['correct'] for x in lines if x['task'] == task])

    report = (world / 'run' / 'report.md').read_text()
    assert 'eval/boolq-piqa-loglik-limit3.json' in report
    assert (world / 'run' / 'plots' / 'gate_sigma.png').exists()
    assert not (world / 'run' / 'results.json').exists()  # the training's file


def test_the_bare_base_and_the_runs_base_are_the_same(world, capsys):
    common = [*BASE, '--dataset=piqa']
    assert run.main(['--model_name=model', '--data-dir=data', '--out=piqa.json', *common]) == 0
    assert run.main(['--ckpt=run', *common]) == 0
    bare = read(world / 'runs' / 'base-model' / 'eval' / 'piqa-loglik.json')
    assert bare == read(world / 'piqa.json')
    assert bare['eval'] == read(world / 'run' / 'eval' / 'piqa-loglik-base.json')['eval']
    assert 'bare base model model' in (world / 'runs' / 'base-model' / 'report.md').read_text()


def test_a_task_named_twice_is_asked_once(world):
    for names in ('boolq', 'boolq,boolq', 'all'):
        argv = ['--ckpt=run', f'--dataset={names}', '--batch=4', '--no_progress', '--name=x']
        if names == 'all':
            argv = [*argv[:1], '--dataset=boolq,all', *argv[2:4], '--name=both']
        assert run.main(argv) == 0
    assert read(world / 'run' / 'eval' / 'x.json')['config']['rows'] == {'boolq': 4}
    both = read(world / 'run' / 'eval' / 'both.json')['config']['rows']
    assert both == {'boolq': 4, 'piqa': 4}


def test_a_run_whose_base_has_moved_is_evaluated_where_it_lies_now(world):
    common = ['--dataset=piqa', '--batch=4', '--no_progress', '--ckpt=run']
    assert run.main([*common, '--out=new/folder/here.json']) == 0  # the folder is made
    (world / 'model').rename(world / 'moved')
    try:
        assert run.main([*common, '--name=there', '--model_name=moved']) == 0
    finally:
        (world / 'moved').rename(world / 'model')
    there = read(world / 'run' / 'eval' / 'there.json')
    assert there['eval'] == read(world / 'new' / 'folder' / 'here.json')['eval']


def test_a_finished_evaluation_is_not_overwritten(world, capsys):
    argv = ['--ckpt=run', '--dataset=boolq', '--name=mine', '--batch=4', '--no_progress']
    assert run.main(argv) == 0
    assert run.main([*argv, '--batch=2']) == 0  # the same evaluation: no prediction depends on it
    before = read(world / 'run' / 'eval' / 'mine.json')
    capsys.readouterr()
    for change in ('--limit=2', '--decoding=greedy', '--template=llm-adapters', '--method=none'):
        assert run.main([*argv, change]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: run/eval/mine.json holds a finished result of another')
        assert change.strip('-').partition('=')[0].replace('limit', 'rows') in error
    assert read(world / 'run' / 'eval' / 'mine.json') == before
    (world / 'other.json').write_text('{}')
    assert run.main([*argv, '--out=other.json']) == 2
    assert 'other.json exists and is no result' in capsys.readouterr().err


def test_fixed_decoding_warns(world, capsys):
    argv = ['--ckpt=run', '--dataset=boolq', '--limit=2', '--decoding=fixed', '--max_new_tokens=3']
    assert run.main([*argv, '--no_progress']) == 0
    assert 'warning: ' in (error := capsys.readouterr().err)
    assert 'PROMPT' in error
    found = read(world / 'run' / 'eval' / 'boolq-fixed-limit2.json')
    assert (found['config']['seed'], found['config']['max_new_tokens']) == (0, 3)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'give --ckpt RUN for a run of train.run, or --model_name NAME for a bare base'),
        (['--model_name=model', '--method=hira'], "--method 'hira': an adapter comes from its run"),
        (['--ckpt=run', '--name=../x'], "--name is a name in the run's eval/.*'../x'"),
        (['--ckpt=nowhere'], 'nowhere is no run directory'),
        (['--ckpt=run', '--dataset=bolq'], "no data set 'bolq'.*nearest: boolq"),
        (['--ckpt=run', '--dataset=obqa'], 'no openbookqa.test.jsonl.gz in'),
        (['--ckpt=run', '--limit=-1'], '--limit must be 0'),
        (['--ckpt=run', '--dataset=,'], "--dataset ',' names no data set"),
    ],
)
def test_errors_are_one_line_and_exit_2(argv, message, capsys):
    assert run.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error


@pytest.mark.parametrize('program', [run, generate])
def test_help_names_every_flag_with_its_default(program, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(['--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in program.Args.__dataclass_fields__:
        assert f'--{name}' in text.replace('--no_', '--').replace('--no-', '--')
    assert 'default: 0' in text
    with pytest.raises(SystemExit) as stop:
        program.main(['--decodin', 'x'])
    assert stop.value.code == 2


class TestGenerate:
    argv = ('--ckpt=run', '--prompt=is it so?', '--prompt=why', '--max-new-tokens=6')

    def texts(self, world, *more):
        assert generate.main([*self.argv, *more, '--out=texts.json']) == 0
        found = read(world / 'texts.json')
        (world / 'texts.json').unlink()
        assert [pair['prompt'] for pair in found['texts']] == ['is it so?', 'why']
        return [pair['text'] for pair in found['texts']]

    def test_merged_or_beside_the_base(self, world, capsys):
        apart = self.texts(world)
        printed = capsys.readouterr().out
        assert f'> is it so?\n{apart[0]}' in printed
        assert self.texts(world, '--merge') == apart
        assert self.texts(world, '--method=none') != apart
        assert self.texts(world, '--raw') != apart

    def test_a_small_adapter_survives_merging_into_bfloat16(self):
        """`W (1 + 0.0015)` rounds back to W; the merged model computes in float32."""
        model, params, tokenizer = jp.models.load('embedded', dtype=jnp.bfloat16)
        plan = {r'.*/kernel': jp.methods.hira(rank=1)}
        drawn = jp.init(plan, jax.random.key(0), params)
        fill = lambda path, x: jnp.full_like(x, {'a': 1.0, 'b': 0.0015}[path[-1].key])
        state = drawn._replace(params=jax.tree_util.tree_map_with_path(fill, drawn.params))
        made = generate.merged(
            Subject(
                jp.bind(plan, model.apply), state, params, model, tokenizer, plan, None, '', '', {}
            )
        )
        tokens = jnp.arange(5, 37, dtype=jnp.int32)[None]
        wide = model.clone(dtype=jnp.float32)
        logits = lambda forward, state, params: forward(state, {'params': params}, tokens)
        effect = logits(made.forward, made.state, made.params)
        effect -= logits(jp.bind({}, wide.apply), jp.State({}, {}), params)
        expected = logits(jp.bind(plan, wide.apply), state, params)
        expected -= logits(jp.bind({}, wide.apply), jp.State({}, {}), params)
        assert made.model.init_cache(1, 2)['k'].dtype == jnp.float32
        np.testing.assert_allclose(effect, expected, atol=0.02 * float(jnp.abs(expected).max()))

    def test_the_generation_config_may_name_the_end(self, world, monkeypatch):
        """Where chat models keep the token that ends a turn."""
        (whole, _) = self.texts(world)
        file = world / 'model' / 'generation_config.json'
        before = file.read_text()
        end = eval_tiny.tokenizer()(whole[3])['input_ids']
        file.write_text(json.dumps(json.loads(before) | {'eos_token_id': end}))
        (cut, _) = self.texts(world)
        file.write_text(before)
        assert cut == whole[: whole.index(whole[3])] != whole

    def test_sampled(self, world, capsys):
        more = ['--temperature=2', '--top_k=50', '--top-p=0.99']
        once = self.texts(world, *more, '--seed=1')
        assert once == self.texts(world, *more, '--seed=1')
        assert once != self.texts(world, *more, '--seed=2')

    @pytest.mark.parametrize(
        ('argv', 'message'),
        [
            (['--ckpt=run'], 'at least one --prompt'),
            (['--ckpt=run', '--prompt='], 'none that is empty'),
            ([*argv, '--temperature=-1'], 'temperature must be >= 0'),
            ([*argv, '--num_beams=2', '--top_k=5'], 'beam search takes no sampling settings'),
            ([*argv, '--max_new_tokens=999'], 'prompt 0 has .* tokens; with 999 new ones'),
        ],
    )
    def test_errors(self, argv, message, capsys):
        assert generate.main(argv) == 2
        assert re.search(message, capsys.readouterr().err)
