"""lm-evaluation-harness on a jaxpeft model: the answers of its own torch backend, whole tasks."""

import json
import runpy
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('lm_eval', reason="needs lm-evaluation-harness: pip install 'jaxpeft[harness]'")

import lm_eval
import lm_eval.tasks

import jaxpeft as jp
from eval import harness, likelihood, lm, subject
from eval.likelihood import Shape
from tests import models_tiny

POSITIONS = 64
LONG = 'The quick brown fox jumps over the lazy dog, again and again, until it is dark outside. '
# contexts with one, two and three continuations, of one and of many tokens; an empty context; a
# trailing blank, which belongs to the continuation; contexts that must be cut, one of them so that
# the cache cannot hold it padded
PAIRS = [
    ('Is ice cold?', ' yes'),
    ('Is ice cold?', ' no'),
    ('Is ice cold?', ' surely not'),
    ('a', 'b'),
    ('a', 'c'),
    ('', 'alone'),
    ('', 'x'),
    ('ends with a blank ', 'word'),
    (LONG, 'cut'),
    (LONG, 'cut elsewhere'),
    (LONG[:60], 'abcd'),
    (LONG[:60], 'abcdefghij'),
    ('q', LONG[:64]),
]
TEXTS = ['short', LONG[:63], LONG[:64], LONG[:65], LONG * 3, '']


def requests(*args):
    """What lm_eval hands to a model, as far as a model looks at it."""
    return [types.SimpleNamespace(args=a, task_name='t') for a in args]


def letters():
    """The printable ASCII characters as tokens, and an end token: every text is plain to read."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {chr(i): i - 31 for i in range(32, 127)} | {'?': 32, '<end>': 0}
    inner = Tokenizer(models.WordLevel(names, unk_token='?'))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex('.'), 'isolated')
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token='<end>', pad_token='<end>')


def make(kind, tokenizer, folder, positions=POSITIONS):
    """(JaxPEFT with an adapter that acts, folder of the merged weights in HF's format)."""
    config = models_tiny.config(
        kind, vocab_size=96, max_position_embeddings=positions, eos_token_id=0
    )
    model = jp.models.build(config)
    params = jax.tree.map(jnp.asarray, models_tiny.random_params(model))
    plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.lora(rank=2)}
    state = jp.init(plan, jax.random.key(0), params)
    rng = np.random.default_rng(5)
    noisy = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), state.params)
    state = state._replace(params=noisy)
    jp.models.save_pretrained(folder, model, jp.merge(plan, state, params), tokenizer)
    forward = jp.bind(plan, model.apply)
    found = subject.Subject(
        forward, state, params, model, tokenizer, plan, folder, 'flat', '', {'model_name': 'tiny'}
    )
    return lm.JaxPEFT(subject=found, progress=False, batch_size=3)


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    """Made once: its programs are compiled once."""
    return make('llama', letters(), tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module', params=['gpt_neo', 'llama'])
def both(request, tmp_path_factory, llama):
    """(ours, lm_eval's torch backend on the same weights)."""
    pytest.importorskip('torch', reason="compares with lm_eval's torch backend")
    ours = llama
    if request.param == 'gpt_neo':
        ours = make('gpt_neo', letters(), tmp_path_factory.mktemp('gpt_neo'))
    ours.cut = {'requests': 0, 'tokens': 0}
    return ours, torch_backend(ours.subject.folder, ours.tokenizer)


def torch_backend(folder, tokenizer, **options):
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device='cpu', **options)


def test_loglikelihoods_are_those_of_the_torch_backend(both, capsys):
    ours, theirs = both
    found, expected = (m.loglikelihood(requests(*PAIRS), disable_tqdm=True) for m in both)
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-3, rtol=0)
    assert [f[1] for f in found] == [e[1] for e in expected]
    said = capsys.readouterr().err
    assert '3 of 13 contexts did not fit the 64 tokens' in said
    assert ours.cut['requests'] == 3
    del theirs


def test_greedy_continuations_are_known_as_such(both):
    """Each model's own greedy text is one; with its last token changed it is none."""
    ours, theirs = both
    greedy = ours.generate_until(requests(('Is ice cold?', {'max_gen_toks': 5, 'until': []})))[0]
    other = greedy[:-1] + ('A' if greedy[-1] != 'A' else 'B')
    pairs = requests(
        ('Is ice cold?', greedy), ('Is ice cold?', other), ('Is ice cold?', greedy[:1])
    )
    flags = [f[1] for f in ours.loglikelihood(pairs, disable_tqdm=True)]
    assert flags == [True, False, True]
    assert flags == [f[1] for f in theirs.loglikelihood(pairs, disable_tqdm=True)]


def test_rolling_windows_are_those_of_the_torch_backend(both):
    ours, theirs = both
    found, expected = (
        m.loglikelihood_rolling(requests(*((t,) for t in TEXTS)), disable_tqdm=True) for m in both
    )
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-5)
    assert found[-1] == 0.0  # an empty text
    assert ours.cut['tokens'] >= 0
    del theirs


def test_generated_texts_are_those_of_the_torch_backend(both):
    ours, theirs = both
    free = {'max_gen_toks': 40, 'until': []}
    contexts = ['Is ice cold?', 'a', LONG, 'why']
    plain = ours.generate_until(requests(*((c, free) for c in contexts)), disable_tqdm=True)
    stop = [plain[0][18:20], plain[1][3]]  # found after the first look, and before it
    asked = requests(
        *((c, free) for c in contexts),
        *((c, {'max_gen_toks': 40, 'until': stop}) for c in contexts),
        *((c, {'max_gen_toks': 3, 'until': stop, 'do_sample': False}) for c in contexts),
    )
    found, expected = (m.generate_until(asked, disable_tqdm=True) for m in both)
    assert found == expected
    assert found[:4] == plain
    assert found[4] != found[0]
    del theirs


def test_a_stop_string_may_be_a_special_token(llama):
    """Texts leave special tokens out, so the stop string must be sought before that."""
    free = {'max_gen_toks': 40, 'until': []}
    context = 'Is ice cold?'
    (plain,) = llama.generate_until(requests((context, free)))
    mark = next(c for c in plain[18:] if c not in plain[:18])  # behind the first look at the text
    tokenizer = letters()
    tokenizer.add_special_tokens({'additional_special_tokens': [mark]})
    ours = lm.JaxPEFT(
        subject=llama.subject._replace(tokenizer=tokenizer), progress=False, batch_size=3
    )
    stop = {'max_gen_toks': 40, 'until': ['never', mark]}
    both = ours.generate_until(requests((context, free), (context, stop)))
    assert both == [plain.replace(mark, ''), plain[: plain.index(mark)]]


def test_a_real_model_on_real_text(shared_data, tmp_path):
    """stories260K, with its own 512 pieces, on its own kind of text."""
    pytest.importorskip('torch', reason="compares with lm_eval's torch backend")
    folder = shared_data / 'models-small' / 'stories260k_hf'
    tokenizer = pieces(folder)
    model, params, _ = jp.models.load(folder)
    bare = subject.Subject(
        jp.bind({}, model.apply), jp.State({}, {}), params, model, tokenizer, {}, tmp_path,
        'flat', '', {'model_name': 'stories260k'},
    )  # fmt: skip
    ours = lm.JaxPEFT(subject=bare, progress=False, batch_size=4)
    theirs = torch_backend(folder, tokenizer)
    story = 'Once upon a time, there was a little girl named Lily. She loved to play'
    pairs = requests(
        (story, ' outside in the park.'), (story, ' with her'), (story, ' quantum'), ('', 'Once')
    )
    found, expected = (m.loglikelihood(pairs, disable_tqdm=True) for m in (ours, theirs))
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-3, rtol=0)
    assert found[1][0] > found[2][0] + 3  # a story and not noise
    long = requests((story * 40,))
    sums = [m.loglikelihood_rolling(long, disable_tqdm=True)[0] for m in (ours, theirs)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5, abs=1e-3)
    asked = requests((story, {'max_gen_toks': 30, 'until': ['.']}))
    texts = [m.generate_until(asked, disable_tqdm=True)[0] for m in (ours, theirs)]
    assert texts[0] == texts[1]
    assert texts[0].strip()


def pieces(folder):
    """A tokenizer of the model's own pieces (sentencepiece's scores fall with the number)."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = json.loads((folder / 'tok512_pieces_latin1.json').read_text())
    names[1:3] = ['<s>', '</s>']
    inner = Tokenizer(models.Unigram([(n, -float(i)) for i, n in enumerate(names)], unk_id=0))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token='<s>', eos_token='</s>')


def write_tasks(folder):
    """A choice task and a generation task on local data."""
    data = folder / 'data.jsonl'
    rows = [{'q': f'Question {i}: is {i} even?', 'label': i % 2, 'answer': 'x'} for i in range(6)]
    data.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    common = (
        f'dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n'
    )
    (folder / 'tiny_choice.yaml').write_text(
        'task: tiny_choice\noutput_type: multiple_choice\n' + common + 'doc_to_text: "{{q}}"\n'
        'doc_to_target: label\ndoc_to_choice: ["yes", "no"]\n'
        'metric_list:\n  - metric: acc\n  - metric: acc_norm\n'
    )
    (folder / 'tiny_write.yaml').write_text(
        'task: tiny_write\noutput_type: generate_until\n' + common + 'doc_to_text: "{{q}}"\n'
        'doc_to_target: answer\ngeneration_kwargs:\n  max_gen_toks: 4\n  until: ["\\n"]\n'
        'metric_list:\n  - metric: exact_match\n'
    )
    (folder / 'tiny_text.yaml').write_text(
        'task: tiny_text\noutput_type: loglikelihood_rolling\n' + common + 'doc_to_text: ""\n'
        'doc_to_target: "{{q}}"\nmetric_list:\n  - metric: byte_perplexity\n'
    )


def test_whole_tasks_end_to_end(llama, tmp_path, monkeypatch, capsys):
    """The command line on a folder of local tasks, against figures worked out by hand."""
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'hf' / 'datasets'))
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    ours, model = llama, llama.subject.folder
    command = [
        f'--model_name={model}', '--method=none', '--tasks=tiny_choice,tiny_write,tiny_text',
        f'--include_path={tmp_path}', '--no-progress', '--predictions', '--out=copy.json',
    ]  # fmt: skip
    assert harness.main(command) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    file = (
        tmp_path
        / 'runs'
        / f'base-{model.name}'
        / 'eval/harness-tiny_choice-tiny_write-tiny_text.json'
    )
    record = json.loads(file.read_text())
    assert record == json.loads((tmp_path / 'copy.json').read_text())
    rows = [json.loads(x) for x in (tmp_path / 'data.jsonl').read_text().splitlines()]
    pairs = [(r['q'], c) for r in rows for c in (' yes', ' no')]
    scores = np.array([s for s, _ in ours.loglikelihood(requests(*pairs))]).reshape(-1, 2)
    right = scores.argmax(axis=1) == [r['label'] for r in rows]
    results = record['harness']['results']
    assert results['tiny_choice']['acc,none'] == pytest.approx(right.mean())
    rolled = sum(ours.loglikelihood_rolling(requests(*((r['q'],) for r in rows))))
    size = sum(len(r['q'].encode()) for r in rows)
    assert results['tiny_text']['byte_perplexity,none'] == pytest.approx(
        np.exp(-rolled / size), rel=1e-4
    )
    assert results['tiny_write']['exact_match,none'] == 0.0
    assert f'{right.mean():.4f}' in shown
    samples = [json.loads(x) for x in file.with_suffix('.samples.jsonl').read_text().splitlines()]
    assert len(samples) == 18
    assert harness.main([*command, '--max_length=32', f'--name={file.stem}']) == 2
    assert 'another configuration: max_length' in capsys.readouterr().err


def test_the_name_is_known_to_lm_eval(llama):
    made = llama
    model = lm_eval.api.registry.get_model('jaxpeft')
    assert model is lm.JaxPEFT is harness.JaxPEFT
    loaded = model.create_from_arg_string(
        f'model_name={made.subject.folder},method=none,progress=False',
        {'batch_size': '2', 'device': 'cuda:0', 'max_batch_size': None},  # as its program does
    )
    asked = requests(('Is ice cold?', ' yes'))
    ours, theirs = (m.loglikelihood(asked)[0][0] for m in (made, loaded))
    assert ours == pytest.approx(theirs, abs=1e-4)  # merged weights and the adapter beside the base


def test_what_it_refuses(llama, tmp_path, monkeypatch, capsys):
    made = llama
    with pytest.raises(ValueError, match='leaves no room for a context'):
        made.generate_until(requests(('a', {'max_gen_toks': POSITIONS, 'until': []})))
    with pytest.raises(ValueError, match="no generation option 'top_q'; nearest: top_p"):
        made.generate_until(requests(('a', {'max_gen_toks': 2, 'until': [], 'top_q': 1})))
    with pytest.raises(ValueError, match='0 tokens of its own'):
        made.loglikelihood(requests(('', '<end>')))
    with pytest.raises(ValueError, match='batch_size must be a number'):
        lm.JaxPEFT(subject=made.subject, batch_size='auto')
    base = ['--model_name=embedded', '--method=none']
    assert harness.main([*base]) == 2
    assert 'no task was asked for' in capsys.readouterr().err
    every = lm_eval.tasks.TaskManager  # whose own thousands of files take seconds to read
    monkeypatch.setattr(
        lm_eval.tasks,
        'TaskManager',
        lambda include_path, include_defaults=True: every(None, include_path, False),
    )
    write_tasks(tmp_path)
    monkeypatch.setattr('sys.argv', ['x', *base, '--tasks=nowhere.yaml'])
    monkeypatch.delitem(sys.modules, 'eval.harness')  # runpy warns of a module that is there
    with pytest.raises(SystemExit, match='2'):
        runpy.run_module('eval.harness', run_name='__main__', alter_sys=True)
    assert capsys.readouterr().err == 'error: no task file nowhere.yaml\n'
    assert harness.main([*base, f'--include_path={tmp_path}', '--tasks=tiny_choise']) == 2
    assert "no task 'tiny_choise'; nearest: tiny_choice" in capsys.readouterr().err


def test_sampling_is_by_row_and_not_by_batch(llama):
    made = llama
    options = {'max_gen_toks': 20, 'until': [], 'do_sample': True, 'temperature': 1.0, 'top_k': 20}
    asked = requests(*((c, options) for c in ('a', 'bc', 'def', 'ghij')))
    first = made.generate_until(asked)
    made.batch_size = 2
    try:
        assert made.generate_until(asked) == first
        made.seed = 1
        assert made.generate_until(asked) != first
    finally:
        made.batch_size, made.seed = 3, 0


def test_a_chat_is_one_text(llama):
    made = llama
    made.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        '{% if add_generation_prompt %}[assistant] {% endif %}'
    )
    chat = [{'role': 'user', 'content': 'Is ice cold?'}]
    assert made.apply_chat_template(chat) == '[user] Is ice cold?\n[assistant] '
    assert made.chat_template(True) == made.tokenizer.chat_template


def test_shapes_are_joined_only_where_padding_is_cheap():
    counts = {Shape(2, 1): 100, Shape(2, 3): 5, Shape(4, 33): 1}
    assert likelihood.merge(counts, price=0) == {s: s for s in counts}
    joined = likelihood.merge(counts, price=1000)
    assert joined == {
        Shape(2, 1): Shape(2, 3),  # 100 rows x 4 tokens
        Shape(2, 3): Shape(2, 3),  # with them 105 rows x 126 tokens would be too many
        Shape(4, 33): Shape(4, 33),
    }
