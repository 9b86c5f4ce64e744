"""The analysis of runs: figures against values worked out by hand, and the page that shows them."""

import html.parser
import json
import math
import shutil
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpeft as jp
from eval import plots, rundata
from eval.analysis import answers, charts, deltas, gates, gather, measures, page, program, svg
from jaxpeft import paths
from tests import eval_tiny
from tests.test_eval_report import write_run


def test_effective_rank_by_hand():
    assert measures.effective_rank(np.ones(4)) == pytest.approx(4)
    assert measures.effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    p = np.array([3, 1]) / 4
    assert measures.effective_rank(np.array([3.0, 1.0])) == pytest.approx(
        math.exp(-(p[0] * math.log(p[0]) + p[1] * math.log(p[1])))
    )
    with pytest.raises(ValueError, match='one is positive'):
        measures.effective_rank(np.zeros(3))
    assert measures.top_share(np.array([3.0, 4.0])) == pytest.approx(16 / 25)


@pytest.mark.parametrize('shape', [(7, 7), (5, 9), (9, 5)])
def test_singular_values_are_those_of_an_svd(shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(
        measures.singular_values(w), np.linalg.svd(w.astype(float))[1], rtol=1e-6
    )


def test_cosines_by_hand():
    x, y, zero = np.array([[3.0, 0.0]]), np.array([[3.0, 4.0]]), np.zeros((1, 2))
    found = measures.cosine(measures.inner([x, y, -x, zero]))
    np.testing.assert_allclose(found[0, :3], [1, 0.6, -1])
    assert np.isnan(found[3]).all()
    # of arrays laid end to end: (3 * 3 + 2 * 0) / (sqrt(9 + 4) * sqrt(25 + 9))
    parts = measures.inner([x, y]) + measures.inner([np.array([2.0]), np.array([3.0])])
    assert measures.cosine(parts)[0, 1] == pytest.approx(15 / math.sqrt(13 * 34))


def test_correlation_and_sign_test_by_hand():
    assert measures.correlation(np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.0, -1.0])) == -1.0
    assert measures.correlation(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0])) == 0.0
    assert measures.correlation(np.array([1.0]), np.array([1.0])) is None
    assert measures.sign_test(3, 1) == pytest.approx(2 * 5 / 16)
    assert measures.sign_test(0, 0) == 1.0


def noisy(state, seed, scale=0.1):
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.normal(0, scale, x.shape), x.dtype)
    return state._replace(params=jax.tree.map(draw, state.params))


def adapter(params, method, targets, seed=1):
    plan = {jp.targets(params, targets): method}
    return deltas.Adapter(plan, noisy(jp.init(plan, jax.random.key(0), params), seed))


def test_deltas_are_the_merged_weights_less_the_base():
    params = eval_tiny.make().params
    runs = [
        adapter(params, jp.methods.lora(rank=2), ['q_proj', 'v_proj']),
        adapter(params, jp.methods.hira(rank=2), ['q_proj'], seed=2),
    ]
    steps = []
    found = deltas.compare(runs, params, steps.append)
    assert sum(steps) == deltas.count(runs, params) == 8  # two kernels of four layers
    assert [len(own) for own in found.deltas] == [8, 4]
    where = 'transformer/h/attn/attention/q_proj/kernel'
    leaf = lambda tree: np.asarray(paths.get(tree, where))
    base = leaf(params)
    whole = [leaf(jp.merge(r.plan, r.state, params)) - base for r in runs]
    for own, delta in zip(found.deltas, whole, strict=True):
        at = [d for d in own if d.layer.target == 'q_proj']
        assert [d.layer.number for d in at] == [0, 1, 2, 3]
        for d in at:
            one = delta[d.layer.number]
            size = np.linalg.norm(base[d.layer.number])
            assert d.norm == pytest.approx(np.linalg.norm(one), rel=1e-5)
            assert d.relative == pytest.approx(np.linalg.norm(one) / size, rel=1e-5)
            p = np.linalg.svd(one.astype(float))[1]
            p = p / p.sum()
            assert d.effective_rank == pytest.approx(
                np.exp(-(p[p > 1e-9] * np.log(p[p > 1e-9])).sum()), rel=1e-3
            )
            assert d.full_rank == 16
    assert max(d.effective_rank for d in found.deltas[0]) < 2.001  # LoRA's rank
    assert min(d.effective_rank for d in found.deltas[1]) > 3  # HiRA's is not bound by r
    assert np.isnan(found.together['v_proj'].cosine()[0, 1])  # only one adapts it
    x, y = (w.ravel().astype(float) for w in whole)
    assert found.together['q_proj'].cosine()[0, 1] == pytest.approx(
        x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5
    )


def test_no_delta_is_not_a_small_delta():
    """An untrained LoRA has none at all; what lies below the rounding has no rank."""
    params = eval_tiny.make().params
    plan = {jp.targets(params, ['q_proj']): jp.methods.lora(rank=2)}
    state = jp.init(plan, jax.random.key(0), params)
    (own,) = deltas.compare([deltas.Adapter(plan, state)], params).deltas
    assert {(d.norm, d.effective_rank) for d in own} == {(0.0, None)}
    tiny = deltas.measure(deltas.Layer('x/kernel', 0), np.ones((4, 4)), np.eye(4) * 1e-6)
    assert tiny.norm == pytest.approx(2e-6)
    assert tiny.effective_rank is None


def test_rounding_is_no_direction_of_a_delta():
    """W + delta - W in float32 has full rank; the effective rank stays that of delta."""
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (256, 512)).astype(np.float32)
    delta = rng.normal(size=(256, 4)) @ rng.normal(size=(4, 512))
    for share in (1e-1, 1e-3, 3e-5):
        own = delta * share * np.linalg.norm(w) / np.linalg.norm(delta)
        rounded = (w + own).astype(np.float32) - w
        found = deltas.measure(deltas.Layer('x/kernel', 0), w, rounded)
        exact = measures.effective_rank(measures.singular_values(own))
        assert found.effective_rank == pytest.approx(exact, rel=2e-2)
        assert found.effective_rank <= 4


def test_unrolled_layers_and_whole_leaves():
    """Layer numbers come from paths; full fine-tuning's biases have norms and no rank."""
    model = jp.models.build(eval_tiny.make().model.config, scan=False)
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype)
    params = jax.tree.map(draw, jp.models.param_shapes(model))
    plan = {r'.*/c_fc/(kernel|bias)': jp.methods.full()}
    state = noisy(jp.init(plan, jax.random.key(0), params), 3)
    (own,) = deltas.compare([deltas.Adapter(plan, state)], params).deltas
    assert [(d.layer.target, d.layer.number) for d in own] == [
        (name, n) for n in range(4) for name in ('c_fc/bias', 'c_fc')
    ]
    assert {d.effective_rank is None for d in own if d.layer.target == 'c_fc/bias'} == {True}
    assert {d.effective_rank is None for d in own if d.layer.target == 'c_fc'} == {False}


def test_methods_without_a_merged_weight_are_named():
    tiny = eval_tiny.make()
    plan = jp.compose(tiny.model, tiny.params, 'lora+daa', options={'lora': {'rank': 2}})
    found = deltas.without(plan, tiny.params)
    assert set(found.values()) == {'daa'}
    assert all(path.endswith('core') for path in found)
    plan = jp.compose(tiny.model, tiny.params, 'hylorada_v2', options={'hylorada_v2': {'rank': 2}})
    found = deltas.without(plan, tiny.params)
    assert 'hylorada_v2' in found.values()
    assert deltas.count([deltas.Adapter(plan, jp.State({}, {}))], tiny.params) == 0


def test_gates_by_hand():
    leaves = {
        'params/h/q_proj/kernel/gate': np.array([[0.0, math.log(3)], [1.0, 1.0]]),
        'consts/h/q_proj/kernel/sigma': np.array([[1.0, 0.5], [1.0, 0.2]]),
        'params/h/v_proj/kernel/gate': np.array([0.0, math.log(3)]),
        'params/h/v_proj/kernel/residual': np.array([0.0, -math.log(3)]),
        'params/h/v_proj/kernel/m': np.array([[2.0, 3.0], [1.0, 1.0]]),
        'consts/h/v_proj/kernel/norm': np.array([[1.0, 2.0], [1.0, 1.0]]),
        'params/h/o_proj/kernel/diag': np.array([[1.5, -2.0]] * 2),
        'consts/h/o_proj/kernel/u': np.array([[[3.0, 0.0], [4.0, 1.0]]] * 2),
    }
    sites = {
        path.split('/', 1)[1].rpartition('/')[0]: {'stack': [2], 'layers': None} for path in leaves
    }
    found = {(e['target'], e['layer']): e for e in gates.of_run(leaves, sites)}
    assert found['q_proj', 0]['gate'] == pytest.approx([0.5, 0.75])
    assert found['q_proj', 0]['correlation'] == -1.0
    assert found['q_proj', 1]['correlation'] is None  # the gates agree
    assert found['v_proj', 1] == pytest.approx(
        {
            'path': 'h/v_proj/kernel',
            'target': 'v_proj',
            'layer': 1,
            'gamma': 0.75,
            'beta': 0.25,
            'magnitude': 0.0,
        }
    )
    assert found['v_proj', 0]['magnitude'] == pytest.approx((1 + 0.5) / 2)
    assert found['o_proj', 0]['tail'] == pytest.approx([5.0, 1.0])
    assert found['o_proj', 0]['diag'] == [1.5, -2.0]
    assert gates.of_layer({'gate': np.zeros(3)}) == {}  # some other method's, of some other meaning


def test_ranks_that_do_not_act_are_in_no_figure(tmp_path):
    leaves = {
        'params/h/q_proj/kernel/gate': np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 3.0]]),
        'consts/h/q_proj/kernel/sigma': np.array([[1.0, 0.5, 0.1], [1.0, 0.5, 0.1]]),
        'consts/h/q_proj/kernel/rank': np.array([2, 3]),
        'params/h/o_proj/kernel/diag': np.array([[1.5, 0.0], [1.0, 2.0]]),
        'consts/h/o_proj/kernel/u': np.ones((2, 4, 2)),
        'consts/h/o_proj/kernel/rank': np.array([1, 2]),
    }
    sites = {f'h/{name}/kernel': {'stack': [2], 'layers': None} for name in ('q_proj', 'o_proj')}
    found = {(e['target'], e['layer']): e for e in gates.of_run(leaves, sites)}
    assert [len(found['q_proj', i]['gate']) for i in (0, 1)] == [2, 3]
    assert len(found['q_proj', 0]['sigma']) == 2
    assert found['q_proj', 0]['correlation'] == pytest.approx(1.0)
    assert (found['o_proj', 0]['diag'], found['o_proj', 0]['tail']) == ([1.5], [2.0])
    run = rundata.RunData(tmp_path, {}, [], {}, {}, sites, leaves)
    spectra = rundata.spectra(run)['q_proj']
    assert np.isnan(spectra['gate']).tolist() == [[False, False, True], [False] * 3]
    assert plots.gate_sigma(run) is not None


def answer(row, right, said, scores=None, task='boolq', instruction='why?'):
    record = {
        'task': task,
        'row': row,
        'answer': right,
        'prediction': said,
        'correct': right == said,
    }
    return (
        record | {'instruction': instruction} | ({'scores': scores} if scores else {'text': 'um'})
    )


def test_failures_by_kind():
    said = ['true', 'false', '', 'true', 'maybe']
    right = ['true', 'true', 'true', 'false', 'false']
    records = [answer(i, r, s) for i, (r, s) in enumerate(zip(right, said, strict=True))]
    assert answers.failures(records) == {
        'rows': 5, 'right': 1, 'unparsable': 1, 'one label': 0, 'majority': 1, 'other label': 2,
    }  # fmt: skip
    constant = [answer(i, 'true' if i % 2 else 'false', 'true') for i in range(4)]
    assert answers.failures(constant)['one label'] == 2
    tied = [answer(0, 'true', 'false'), answer(1, 'false', 'true')]
    assert answers.failures(tied)['other label'] == 2  # no answer is the commonest


def test_histograms_and_confidences():
    records = [answer(0, 'true', 'false'), answer(1, 'true', '')]
    assert answers.histogram(records) == {
        'true': {'right': 2, 'said': 0},
        'false': {'right': 0, 'said': 1},
        'unparsable': {'right': 0, 'said': 1},
    }
    scored = answer(0, 'true', 'true', {'true': math.log(3), 'false': 0.0})
    assert answers.confidence(scored) == pytest.approx(0.75)
    assert answers.confidence(records[0]) is None


def test_transitions_and_disagreements():
    sure, unsure = {'true': 3.0, 'false': 0.0}, {'true': 0.1, 'false': 0.0}
    base = [answer(i, 'false', s) for i, s in enumerate(['false', 'false', 'true', 'true'])]
    mine = [
        answer(0, 'false', 'true', unsure), answer(1, 'false', 'true', sure),
        answer(2, 'false', 'false', {'true': 0.0, 'false': 1.0}), answer(3, 'false', 'true', sure),
    ]  # fmt: skip
    both = answers.pairs(base, mine)
    assert answers.transitions(both) == {
        'right': 0, 'gained': 1, 'lost': 2, 'wrong': 1, 'p': 1.0,
    }  # fmt: skip
    lost = answers.disagreements(both, gained=False)
    assert [row['row'] for row in lost] == [1, 0]  # the surest first
    assert [row['row'] for row in answers.disagreements(both, gained=True)] == [2]
    assert lost[0]['base'] == 'false'
    assert len(answers.disagreements(both, gained=False, keep=1)) == 1
    with pytest.raises(ValueError, match='4 rows and the adapted model 3'):
        answers.pairs(base, mine[:3])
    with pytest.raises(ValueError, match='two right answers'):
        answers.pairs(base, [*mine[:3], answer(3, 'true', 'true')])


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order, and collects text and what a page would load."""

    VOID = ('meta', 'br', 'hr', 'img', 'link', 'input')

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.loads, self.words = [], set(), [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [v for k, v in attrs if k in ('src', 'href', 'xlink:href') and v[:1] != '#']
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


EVIL = '<script>alert("x")</script> & <b>bold</b>'


def test_nothing_that_came_in_is_read_as_html():
    parts = [
        page.table([EVIL], [[EVIL], [page.long(EVIL)], [page.long(EVIL * 9)]]),
        page.note(EVIL),
        charts.legend([(EVIL, 0)]),
        charts.plot([charts.Series(EVIL, [(0, 1), (1, 2)], 0, 'dash')], EVIL, EVIL),
        charts.heatmap([EVIL], [EVIL, 'b'], [[0.1, None]], EVIL, EVIL),
        charts.shares([charts.Bar(EVIL, [(EVIL, 3, 0), ('rest', 1, None)])], EVIL),
    ]
    read = Reader(page.page(EVIL, [('', parts[0]), (EVIL, ''.join(parts[1:]))], EVIL))
    assert not read.tags & {'script', 'b'}
    assert read.loads == []
    assert sum(EVIL in word for word in read.words) >= 12
    for chart in parts[3:]:
        ET.fromstring(chart)  # well-formed by itself


def test_charts_hold_their_figures():
    chart = ET.fromstring(charts.plot([charts.Series('a', [(0, 1), (2, 3)], 0)], 'step', 'loss'))
    (path,) = chart.iter('polyline')
    (x0, y0), (x1, y1) = (map(float, p.split(',')) for p in path.get('points').split())
    assert x0 < x1
    assert y0 > y1  # up is more
    chart = ET.fromstring(charts.heatmap(['q'], ['0', '1'], [[0.25, None]], 't', bounds=(0, 1)))
    assert '0.25' in [t.text for t in chart.iter('text')]
    assert [t.text for t in chart.iter('title')] == ['q, 0: 0.2500', 'q, 1: -']
    fills = [r.get('style') for r in chart.iter('rect')]
    assert fills[0] == 'fill:color-mix(in oklab, var(--hi) 25%, var(--lo))'
    wide = charts.heatmap(['q'], [str(i) for i in range(80)], [[0.123] * 80], 't')
    assert not [t for t in ET.fromstring(wide).iter('text') if t.text == '0.12']  # no room
    with pytest.raises(ValueError, match='nothing to draw'):
        charts.plot([], 'step', 'loss')
    assert [svg.number(x) for x in (0, 12.5, -0.5, 1e9)] == ['0', '12.5', '-0.500', '1e+09']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two finished runs on one saved base; answers of the first and of the base are kept."""
    folder = tmp_path_factory.mktemp('runs')
    tiny = eval_tiny.make()
    jp.models.save_pretrained(folder / 'model', tiny.model, tiny.params, None)
    for i, (name, method) in enumerate((('one', 'knowhira'), ('two & more', 'hylorada'))):
        state = write_run(folder / name, method)
        plan, _ = jp.load_adapter(folder / name / 'adapter', tiny.params)
        jp.save_adapter(folder / name / 'adapter', plan, noisy(state, i), tiny.params)
        config = json.loads((folder / name / 'config.json').read_text())
        config['model_name'] = str(folder / 'model')
        (folder / name / 'config.json').write_text(json.dumps(config))
    shared = {'model_name': 'm', 'dtype': 'float32', 'decoding': 'loglik', 'rows_sha256': 'x'}
    (folder / 'one' / 'eval').mkdir()
    for name, method, said in (('all', 'knowhira', 'false'), ('all-base', 'none', 'true')):
        file = folder / 'one' / 'eval' / f'{name}.json'
        file.write_text(json.dumps({'config': shared | {'method': method}}))
        scores = {'true': 0.0, 'false': 2.0 if said == 'false' else -2.0}
        lines = [answer(i, 'true', said, scores, instruction=EVIL) for i in range(3)]
        file.with_suffix('.predictions.jsonl').write_text(
            ''.join(json.dumps(x) + '\n' for x in lines)
        )
    return folder


def test_a_report_of_two_runs(runs, capsys):
    out = runs / 'figures.json'
    folders = [str(runs / 'one'), str(runs / 'two & more')]
    assert program.main([*folders, f'--json={out}', '--no-progress']) == 0
    said = capsys.readouterr()
    text = (runs / 'report.html').read_text()
    read = Reader(text)
    assert read.loads == []
    assert not read.tags & {'script', 'img', 'link'}
    assert 'alert' in text
    assert '<script' not in text
    assert 'two &amp; more' in text
    for heading in ('Accuracy', 'Training', 'Deltas', 'Cosine between runs', 'Gates', 'Failures'):
        assert heading in read.words
    figures = json.loads(out.read_text())
    one, two = figures['runs']
    assert one['answers'][0]['failures']['boolq']['one label'] == 3
    assert one['answers'][0]['transitions']['boolq']['lost'] == 3
    assert len(one['answers'][0]['lost']) == 3
    assert one['missing'] == []
    # what is not there is told, on the page and by the program, with the command that makes it
    command = f'python -m eval.run --ckpt {runs / "two & more"} --predictions'
    assert two['missing'] == [f'answers row by row: {command}']
    assert two['answers'] == []
    assert command in said.err
    assert command in read.words
    assert {d['target'] for d in one['deltas']} == {'q_proj', 'out_proj'}
    assert len(two['deltas']) == 8
    (cosine,) = figures['cosine']
    assert cosine['runs'] == ['one', 'two & more']
    assert cosine['all'][0][0] == 1.0
    assert abs(cosine['all'][0][1]) < 1
    assert len({e['layer'] for e in one['gates']}) == 4
    assert program.main([*folders, f'--json={out}', '--no-progress']) == 0  # its own may be renewed


def test_runs_of_unlike_bases_have_no_cosine_and_are_told(runs, tmp_path):
    shutil.copytree(runs / 'two & more', tmp_path / 'bf16')
    config = json.loads((tmp_path / 'bf16' / 'config.json').read_text())
    (tmp_path / 'bf16' / 'config.json').write_text(json.dumps(config | {'dtype': 'bfloat16'}))
    found = gather.gather([runs / 'one', tmp_path / 'bf16'], progress=False)
    assert found['cosine'] == []
    for run, dtype in zip(found['runs'], ('float32', 'bfloat16'), strict=True):
        said = f'Cosines: no other run has its base {runs / "model"} with dtype {dtype}, scan True.'
        assert said in run['missing']


def test_the_command_for_the_bases_answers_asks_the_same_questions(runs):
    folder = runs / 'one'
    kept = {
        'config': {
            'method': 'knowhira', 'decoding': 'beam', 'template': 'flat', 'max_new_tokens': 8,
            'num_beams': 2, 'rows_sha256': 'x',
        },
        'asked': {'dataset': 'boolq,piqa', 'limit': 100},
    }  # fmt: skip
    said = gather._how(rundata.read(folder), kept)
    assert said == (
        f'python -m eval.run --ckpt {folder} --method none --dataset boolq,piqa --limit 100 '
        '--decoding beam --template flat --max_new_tokens 8 --num_beams 2 --predictions'
    )
    other = kept['config'] | {'num_beams': 4}
    assert gather._key(other) != gather._key(kept['config'])


def test_a_report_of_one_run_and_refusals(runs, tmp_path, capsys):
    assert program.main([str(runs / 'two & more'), '--no-progress']) == 0
    text = (runs / 'two & more' / 'report.html').read_text()
    assert 'Cosine between runs' not in text
    assert 'Not in this report' in text
    foreign = tmp_path / 'page.html'
    foreign.write_text('<html></html>')
    assert program.main([str(runs / 'one'), f'--out={foreign}']) == 2
    assert program.main([str(runs / 'one'), f'--json={foreign}']) == 2
    assert program.main([str(runs / 'model')]) == 2
    assert program.main([]) == 2
    said = capsys.readouterr().err
    assert 'no page of python -m eval.report' in said
    assert 'holds no figures of eval.report' in said
    assert 'no run directory with an adapter' in said
    assert 'no run was named' in said
    assert foreign.read_text() == '<html></html>'


def test_figures_with_a_nan_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='JSON compliant'):
        gather.write_json(tmp_path / 'x.json', {'runs': [float('nan')]})


def test_two_runs_are_compared_where_both_adapt():
    """A third that adapts something else, or nothing that merges, changes nothing of them."""
    params = eval_tiny.make().params
    first = adapter(params, jp.methods.lora(rank=2), ['q_proj', 'v_proj'])
    doubled = first._replace(
        state=first.state._replace(params=jax.tree.map(lambda x: -2 * x, first.state.params))
    )
    third = adapter(params, jp.methods.lora(rank=2), ['v_proj'], seed=4)
    found = deltas.compare([first, doubled, third], params)
    whole = deltas.whole(found.together)
    assert whole.cosine()[0, 1] == pytest.approx(1)  # (-2 a)(-2 b) = 4 a b: the same direction
    assert np.isnan(found.together['q_proj'].cosine()[0, 2])
    only = deltas.compare([first, third], params).together['v_proj'].cosine()[0, 1]
    assert whole.cosine()[0, 2] == pytest.approx(only)
