"""The command line: presets, files, flags, their order, and what a wrong one is told."""

import dataclasses
import inspect
import json
import re

import pytest

import jaxpeft as jp
from train import cli, config, options, rundir

REAL = ('--model_name=x', '--dataset=y.jsonl')

# DESIGN section 6 and issue 2, section 4: the names that users of the reference programs know.
FLAGS = """method model_name dataset r_ab knowledge_alpha ortho_lambda svd_rank_ratio
spectrum_init_scale adaptive_gating batch grad_acc lr epoch weight_decay warmup schedule seed
max_length eval_steps save_steps early_stop_patience init_ab train_ab init_from eval_strategy
run_dir resume dtype mesh set config preset data_dir template train_on_inputs dropout target_modules
exclude_modules max_steps val_size skip_bad_rows packing eval_tasks eval_limit eval_decodings
remat save_total_limit wandb max_grad_norm scan log_steps"""


def parse(*argv):
    return cli.parse(argv)[0]


def test_every_flag_exists_and_help_groups_and_explains_it(capsys):
    assert set(FLAGS.split()) <= set(config.flags())
    with pytest.raises(SystemExit) as stop:
        cli.parse(['--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for group in config.GROUPS:
        assert f'{group} options' in text
    for flag in config.flags():
        assert re.search(rf'--{flag}\b', text), flag
    assert re.sub(r'[│\s]+', ' ', text).count('(default: ') >= len(config.flags()) - 2
    for group in config.GROUPS:  # a help line for every flag: its docstring
        source = inspect.getsource(type(getattr(config.Config(), group)))
        fields = dataclasses.fields(getattr(config.Config(), group))
        assert source.count('"""') == 2 * (len(fields) + 1), group


def test_the_defaults_shown_are_knowhiras():
    default = config.Adapter()
    signature = inspect.signature(jp.methods.knowhira).parameters
    for flag, argument in config.METHOD_FLAGS.items():
        assert getattr(default, flag) == signature[argument].default, flag


def test_the_command_of_the_design():
    command = """--method knowhira --model_name EleutherAI/gpt-neo-1.3B --dataset common_170k
        --r_ab 32
        --knowledge_alpha 0.6 --ortho_lambda 0.0001 --svd_rank_ratio 0.85 --spectrum_init_scale 0.1
        --adaptive_gating --batch 8 --grad_acc 4 --lr 1e-4 --epoch 3.0"""
    got = parse(*command.split())
    assert got.model.model_name == 'EleutherAI/gpt-neo-1.3B'
    assert got.options['knowhira']['rank'] == 32
    assert got.options['knowhira']['adaptive_gating'] is True
    assert (got.optim.batch, got.optim.grad_acc, got.optim.lr, got.optim.epoch) == (8, 4, 1e-4, 3.0)


def test_dashes_work_as_underscores_do():
    assert parse(*REAL, '--r-ab', '4', '--no-packing') == parse(*REAL, '--r_ab=4', '--no_packing')


def test_method_flags_reach_the_factory_and_the_rest_keeps_its_own_defaults():
    got = parse('--method', 'lora', *REAL, '--r_ab', '6', '--dropout', '0.1')
    expected = {p.name: p.default for p in inspect.signature(jp.methods.lora).parameters.values()}
    assert got.options['lora'] == expected | {'rank': 6, 'dropout': 0.1}
    no_gates = parse('--method', 'knowhira', *REAL, '--no_adaptive_gating')
    assert no_gates.options['knowhira']['adaptive_gating'] is False


def test_set_is_checked_against_the_signature_and_typed():
    got = parse('--method', 'lora', *REAL, '--set', 'method.alpha=64', '--set', 'lora.rslora=true')
    assert got.options['lora']['alpha'] == 64
    assert got.options['lora']['rslora'] is True
    assert parse(*REAL, '--set', 'method.gate_init=-1').options['knowhira']['gate_init'] == -1.0
    got = parse(*REAL, '--set', 'method.ortho_lambda=1e-3')
    assert got.options['knowhira']['ortho_lambda'] == 1e-3
    with pytest.raises(ValueError, match=r'gate_inti; nearest: gate_init'):
        parse(*REAL, '--set', 'method.gate_inti=1')
    with pytest.raises(ValueError, match='must be a float like'):
        parse(*REAL, '--set', 'method.gate_init=high')
    with pytest.raises(ValueError, match=r'method\.key=value'):
        parse(*REAL, '--set', 'gate_init')
    for value in ('nan', '.inf'):
        with pytest.raises(ValueError, match=r'method\.alpha must be finite, got'):
            parse('--method', 'lora', *REAL, '--set', f'lora.alpha={value}')
    for value in ('true', 'many'):
        with pytest.raises(ValueError, match=r'method\.alpha must be a number or null, got'):
            parse('--method', 'lora', *REAL, '--set', f'lora.alpha={value}')
    got = parse('--method', 'lora', *REAL, '--set', 'lora.alpha=null')
    assert got.options['lora']['alpha'] is None
    with pytest.raises(ValueError, match=r'--set lora\.alpha=\[1, line 1: not YAML: expected'):
        parse('--method', 'lora', *REAL, '--set', 'lora.alpha=[1')
    with pytest.raises(ValueError, match='given twice'):
        parse(*REAL, '--r_ab', '4', '--set', 'method.rank=8')


def test_a_flag_that_the_method_does_not_take_is_an_error_from_the_user_a_note_from_a_file():
    with pytest.raises(ValueError, match=r'lora takes no --knowledge_alpha; .*--r_ab'):
        parse('--method', 'lora', *REAL, '--knowledge_alpha', '0.5')
    got, notes = cli.parse(['--preset', 'knowhira-gpt-neo-1.3b-r32', '--method', 'lora'])
    assert got.options['lora']['rank'] == 32
    assert 'knowledge_alpha' not in got.options['lora']
    assert len(notes) == 1
    assert 'lora takes no --knowledge_alpha' in notes[0]


def test_order_defaults_preset_file_command_line(tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text('grad-acc: 7\nlr: 3e-4\nadaptive_gating: false\nset: [method.gate_init=-2]\n')
    argv = ['--preset', 'knowhira-gpt-neo-1.3b-r48', '--config', str(file), '--lr', '1e-2']
    got = parse(*argv)
    assert got.run.log_steps == config.Run().log_steps  # default
    assert got.optim.batch == 24  # preset
    assert got.optim.grad_acc == 7  # file over preset (12)
    assert got.optim.lr == 1e-2  # command line over file over preset
    assert got.options['knowhira']['adaptive_gating'] is False
    assert got.options['knowhira']['gate_init'] == -2.0


def test_a_file_may_leave_texts_blank_and_says_no_as_yaml_reads_it(tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text(
        'run_dir:\ndata_dir: null\ntarget_modules: ~\ninit_from:\nset:\neval_strategy: no\n'
    )
    got = parse(*REAL, '--config', str(file))
    assert (got.run.run_dir, got.data.data_dir) == ('', '')
    assert (got.adapter.target_modules, got.adapter.init_from, got.adapter.set) == ('', '', ())
    assert got.validation.eval_strategy == 'no'
    assert config.run_dir(got).parts[0] == 'runs'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('r_ab: true\n', 'r_ab must be a value like 32, got True'),
        ('r_ab:\n', 'r_ab must be a value like 32, got nothing'),
        ('method:\n', "method must be a value like 'knowhira', got nothing"),
        ('eval_strategy: on\n', "eval_strategy must be a value like 'steps', got True"),
        ('wandb: 1\n', 'wandb must be true or false, got 1'),
        ('lr: 1e-3\nbatch: [1\n', "line 3: not YAML: expected ',' or ']'"),
        ('lr: 1\n\tbatch: 2\n', 'line 2: not YAML: found character'),
        ('run_dir: 2024-13-01\n', 'not YAML: month must be in 1..12'),
    ],
)
def test_a_wrong_line_of_a_file_is_told_with_the_file(tmp_path, text, message):
    file = tmp_path / 'run.yaml'
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(file)) + '.*' + re.escape(message)):
        parse(*REAL, '--config', str(file))
    file.write_bytes(b'lr: \xff\n')
    with pytest.raises(ValueError, match='not YAML'):
        parse(*REAL, '--config', str(file))


def test_embedded_only_where_nothing_else_is_named():
    got = parse('--method', 'knowhira')
    assert (got.model.model_name, got.data.dataset) == ('embedded', 'embedded')
    assert got.data.max_length == 144  # from presets/embedded.yaml
    assert parse('--method', 'hira', '--lr', '3e-3').optim.lr == 3e-3
    assert got.optim.lr == 1e-2  # ten times the method's usual rate
    assert parse('--method', 'lora+daa').optim.lr == 1e-3
    assert parse(*REAL).data.max_length == config.Data().max_length
    with pytest.raises(ValueError, match='--dataset boolq needs --model_name beside it'):
        parse('--dataset', 'boolq')
    with pytest.raises(ValueError, match='--model_name x needs --dataset beside it'):
        parse('--model_name', 'x')


@pytest.mark.parametrize('path', sorted(cli.PRESETS.glob('*.yaml')), ids=lambda p: p.stem)
def test_presets_begin_with_their_command_and_resolve(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith('# python -m train.run ')
    argv = first.removeprefix('# python -m train.run ').split()
    got, notes = cli.parse(argv)
    assert not notes
    if path.stem != 'embedded':
        assert argv == ['--preset', path.stem]
    assert got.model.model_name in {
        'embedded', 'EleutherAI/gpt-neo-1.3B', 'Qwen/Qwen2.5-0.5B',
    }  # fmt: skip


def test_the_seeds_script():
    got = parse('--preset', 'knowhira-gpt-neo-1.3b-r48')
    assert got.optim.batch * got.optim.grad_acc == 288
    assert got.options['knowhira']['rank'] == 48
    assert got.options['knowhira']['knowledge_alpha'] == 0.7
    assert got.options['knowhira']['ortho_lambda'] == 2e-5
    assert got.options['knowhira']['spectrum_init_scale'] == 0.05
    assert (got.optim.epoch, got.optim.seed, got.optim.warmup) == (4.0, 42, 200)
    assert got.validation.early_stop_patience == 5


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--method', 'knowhria'], 'knowhira'),
        (['--preset', 'knowhira-gpt-neo-1.3b-r23'], 'nearest: knowhira-gpt-neo-1.3b-r'),
        ([*REAL, '--batch', '0'], '--batch must be at least 1, got 0'),
        ([*REAL, '--lr', '0'], '--lr must be above 0'),
        ([*REAL, '--val_size', '0'], '--eval_strategy no'),
        ([*REAL, '--early_stop_patience', '2', '--eval_strategy', 'no'], 'needs --eval_strategy'),
        ([*REAL, '--svd_rank_ratio', '2'], 'svd_rank_ratio must be in'),
        ([*REAL, '--init_ab', 'kaimin,zero'], 'kaiming'),
        ([*REAL, '--lr', 'nan'], '--lr must be a finite number, got nan'),
        ([*REAL, '--lr', 'inf'], '--lr must be a finite number, got inf'),
        ([*REAL, '--warmup', 'nan'], '--warmup must be a finite'),
        ([*REAL, '--max_grad_norm', 'inf'], '--max_grad_norm must be a finite'),
        ([*REAL, '--epoch', 'inf'], '--epoch must be a finite'),
        ([*REAL, '--weight_decay', 'nan'], '--weight_decay must be a finite'),
        ([*REAL, '--knowledge_alpha', 'nan'], '--knowledge_alpha must be a finite'),
        ([*REAL, '--loraplus_ratio', '16'], '--loraplus_ratio is of --loraplus; give both'),
        (['--method', 'ia3', *REAL, '--r_ab', '4'], 'ia3 takes no --r_ab; it has no options$'),
    ],
)
def test_wrong_values_are_told_the_rule_and_the_nearest(argv, message):
    with pytest.raises(ValueError, match=message):
        cli.parse(argv)


def test_unknown_flags_and_keys_are_told_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse([*REAL, '--knowlege_alpha', '1'])
    assert stop.value.code == 2
    assert '--knowledge_alpha' in capsys.readouterr().err
    file = tmp_path / 'run.yaml'
    file.write_text('larning_rate: 1\nlr: 2\n')
    with pytest.raises(ValueError, match=r"run\.yaml: no flag is called 'larning_rate'"):
        cli.parse([*REAL, '--config', str(file)])
    file.write_text('grad_ac: 1\n')
    with pytest.raises(ValueError, match='nearest: grad_acc'):
        cli.parse([*REAL, '--config', str(file)])
    file.write_text('batch: many\n')
    with pytest.raises(SystemExit):
        cli.parse([*REAL, '--config', str(file)])
    assert f'said by {file}' in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r'nothere\.yaml'):
        cli.parse([*REAL, '--config', 'nothere.yaml'])


def test_config_survives_json_and_names_the_run():
    got = parse('--method', 'lora', *REAL, '--r_ab', '4')
    saved = json.loads(json.dumps(config.to_dict(got)))
    assert saved['r_ab'] == 4
    assert saved['method_options'] == got.options
    assert 'knowledge_alpha' not in saved  # lora has none
    back = config.from_dict(saved)
    assert config.identity(back) == config.identity(got)
    assert config.run_dir(back) == config.run_dir(got)
    assert config.run_dir(got).parts[0] == 'runs'
    assert config.run_dir(got).name.startswith('lora-x-y-')
    same = parse('--method', 'lora', *REAL, '--set', 'method.rank=4', '--wandb')
    assert config.run_dir(same) == config.run_dir(got)
    other = parse('--method', 'lora', *REAL, '--r_ab', '4', '--seed', '1')
    assert config.run_dir(other) != config.run_dir(got)


def test_a_folder_of_another_configuration_is_refused_naming_the_keys(tmp_path):
    where = f'--run_dir={tmp_path / "run"}'
    first = parse(*REAL, where, '--lr', '1e-3')
    refused = parse(*REAL, where, '--lr', '7')
    with rundir.claim(refused):
        pass  # it wrote its config.json and stopped: no run to protect
    with rundir.claim(first) as place:
        assert not place.resumed
        assert place.results is None
        rundir.write_json(place.folder / 'before.json', {})
        with pytest.raises(ValueError, match='another process works in'), rundir.claim(first):
            pass
    with rundir.claim(parse(*REAL, where, '--lr', '1e-3', '--mesh', '1,1,1')):
        pass  # the same run on another mesh
    other = parse(*REAL, where, '--lr', '2e-3', '--r_ab', '8')
    with pytest.raises(ValueError, match=r'lr is 0\.001 there, 0\.002 here; r_ab is 32'):
        rundir.claim(other).__enter__()
    again = parse(*REAL, where, '--lr', '1e-3', '--resume', 'never')
    with pytest.raises(ValueError, match='holds this run already'):
        rundir.claim(again).__enter__()
    must = parse(*REAL, where, '--lr', '1e-3', '--resume', 'must')
    with pytest.raises(ValueError, match='no checkpoint to continue from'):
        rundir.claim(must).__enter__()


def test_several_methods_share_flags_and_keep_their_own_options():
    argv = ['--method', 'lora+daa', *REAL, '--r_ab', '8', '--set', 'daa.num_buckets=64']
    got = parse(*argv, '--set', 'lora.alpha=16')
    assert got.options['lora']['rank'] == 8
    assert got.options['lora']['alpha'] == 16
    assert got.options['daa'] == {'num_buckets': 64, 'max_len': 2048}
    saved = config.to_dict(got)
    assert saved['method'] == 'lora+daa'
    assert saved['method_options']['daa']['num_buckets'] == 64
    assert config.to_dict(config.from_dict(saved)) == saved
    with pytest.raises(ValueError, match=r'lora\+daa takes no --knowledge_alpha'):
        parse('--method', 'lora+daa', *REAL, '--knowledge_alpha', '0.5')
    with pytest.raises(ValueError, match='num_bukets; nearest: num_buckets'):
        parse(*argv[:-2], '--set', 'daa.num_bukets=64')
    with pytest.raises(ValueError, match="no method is called 'dax'; nearest: daa"):
        parse('--method', 'lora+dax', *REAL)
    with pytest.raises(ValueError, match='names lora twice'):
        parse('--method', 'lora+lora', *REAL)


def test_the_preset_lorada_is_lora_and_daa():
    got = parse('--preset', 'lorada')
    assert got.adapter.method == 'lora+daa'
    assert (got.options['lora']['rank'], got.options['lora']['alpha']) == (8, 16.0)


def test_flags_of_layers_and_patterns_are_read_and_refused():
    got = parse(*REAL, '--no_scan', '--layers', '0,2-4', '--rank_pattern', 'q_proj=8,v_proj=4')
    assert options.numbers('layers', got.adapter.layers) == [0, 2, 3, 4]
    assert options.pairs('rank_pattern', got.adapter.rank_pattern, int) == {
        'q_proj': 8, 'v_proj': 4,
    }  # fmt: skip
    for argv, message in (
        (['--layers', '1'], 'needs --no_scan'),
        (['--no_scan', '--layers', 'two'], "numbers and ranges such as 0,2,5-7, got 'two'"),
        (['--no_scan', '--layers', '3-1'], "ranges that rise, such as 1-3, got '3-1'"),
        (['--rank_pattern', 'q_proj'], "name=int,.., got 'q_proj'"),
        (['--alpha_pattern', 'q_proj=x'], "name=float,.., got 'q_proj=x'"),
        (['--alpha_pattern', 'q_proj=nan'], "name=float,.., got 'q_proj=nan'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(*REAL, *argv)
