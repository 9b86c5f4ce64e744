"""The preflight: memory, arithmetic and traffic of the real update, compiled from shapes."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AxisType, PartitionSpec

from tests import train_tiny
from train import cli, feed, model, optimizer, step
from train.preflight import __main__ as preflight
from train.preflight import floor, flops, hlo, largest, memory, program, report, target, traffic

MESH = '2,2,2'
LENGTH, LAYERS, HIDDEN = 48, 2, 32


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return train_tiny.write_all(tmp_path_factory.mktemp('tiny'))


def prepared(tiny, *more, mesh=MESH):
    config = train_tiny.config(tiny, f'--mesh={mesh}', '--method=lora', *more)
    place = target.find('')
    return program.prepare(config, place), place


@pytest.fixture(scope='module')
def lora(tiny):
    """(job, report) of LoRA on eight devices."""
    job, place = prepared(tiny)
    return job, preflight.run(job, place, batch=8)


def test_memory_is_all_accounted_for(lora):
    found = lora[1]
    parts = {k: v for k, v in found['memory'].items() if k not in ('limit', 'fits', 'total')}
    assert sum(parts.values()) == found['memory']['total']
    assert found['fits'] is None  # nobody knows what a CPU holds
    assert found['memory']['padding'] <= 0  # a CPU has no tiles; what nothing reads is not passed
    assert found['memory']['temporaries'] > 0
    # Two moments for each trained number, and a few scalars.
    assert 0 < found['memory']['moments'] - 2 * found['memory']['adapter'] < 64
    assert found['trained'] == LAYERS * 2 * 4 * (HIDDEN + HIDDEN)


def test_shapes_are_those_of_a_real_run(tiny, lora):
    """The same program from arrays: what the preflight lays out is what `train.run` loads.

    It takes examples of full length, which share nothing.
    """
    job, found = lora
    apart = dataclasses.replace(job.config.data, share_prefix=False)
    config = dataclasses.replace(job.config, data=apart)
    built = model.setup(job.config)
    at = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)
    assert at(built.params) == at(job.base)
    assert at(built.state.params) == at(job.train.params)
    real = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(built.params))
    assert real == found['memory']['base']
    data = feed.make(config, built.tokenizer, built.mesh)
    shape = program.shape_of(job, 8)
    batch = data.at(0).arrays
    asked = program.batch_of(job, shape)
    assert batch.keys() == asked.keys()
    for name, array in batch.items():
        assert array.dtype == asked[name].dtype
        assert array.sharding == asked[name].sharding
        assert all(n <= most for n, most in zip(array.shape, asked[name].shape, strict=True))
    rate = optimizer.schedule(job.config.optim, data.steps)
    programs = step.compile_programs(
        built.plan, built.forward, optimizer.make(job.config.optim, rate), rate, built.mesh,
        built.state.params, 0,
    )  # fmt: skip
    assert at(programs.shapes) == at(job.train)


def test_the_floor_by_hand(lora):
    job, found = lora
    tokens, vocabulary = 8 * LENGTH, job.model.config.vocab_size
    kernels = LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * 2 * HIDDEN)
    labelled = found['shape']['labels']
    assert (found['shape']['rows'], found['shape']['width']) == (8, LENGTH)
    assert labelled == 8 * LENGTH  # a file of the user's own: nobody knows how long its answers are
    parts = found['flops']['floor']
    assert parts['forward'] == parts['backward'] == 2 * kernels * tokens
    assert parts['attention'] == 6 * tokens * (LENGTH + 1) * HIDDEN * LAYERS
    assert parts['head'] == 4 * labelled * HIDDEN * vocabulary
    # Few and narrow: the sum W + s A B costs less than a branch for each token.
    assert parts['adapter'] == LAYERS * 2 * 4 * 4 * (2 * HIDDEN * tokens + HIDDEN**2)
    assert parts['total'] == sum(v for k, v in parts.items() if k != 'total')


@pytest.mark.parametrize('method', ['lora', 'knowhira'])
def test_the_update_asks_for_the_floor_and_remat_for_more(tiny, method):
    asked = {}
    for remat in ('none', 'full'):
        job, _ = prepared(tiny, f'--method={method}', f'--remat={remat}', mesh='1,1,1')
        shape = program.shape_of(job, 8)
        least = floor.floor(job, shape)
        asked[remat] = flops.count(program.trace(job, 8).jaxpr)
        if remat == 'none':  # rows this short go without blocks: the masked half is computed
            masked = least.attention * (LENGTH - 1) / (LENGTH + 1)
            assert 1.0 <= asked[remat] / (least.total + masked) < 1.02
    again = asked['full'] - asked['none']
    assert 0.5 * least.forward < again < least.forward + 2 * least.attention + least.adapter


def test_answers_of_known_data_sets_are_short_and_nobody_knows_of_others(tiny):
    """Of text every token is labelled, and of a file of one's own every token may be."""
    for dataset, most in (('some.txt', LENGTH), ('own.jsonl', LENGTH), ('boolq', program.ANSWER)):
        job, _ = prepared(tiny, f'--dataset={dataset}', mesh='1,1,1')
        assert job.labels == most
    assert prepared(tiny, '--dataset=boolq', '--train_on_inputs')[0].labels == LENGTH


def test_trained_are_the_numbers_that_act(tiny):
    """Ranks 4 and 2 of a stack padded to 4, as `train.run` counts them."""
    job, place = prepared(tiny, '--rank_strategy=decreasing', mesh='1,1,1')
    found = preflight.run(job, place, batch=8)
    assert found['trained'] == 2 * (4 + 2) * (HIDDEN + HIDDEN)
    assert found['shape']['note'] == (
        f'each example taken as of full length with {LENGTH} labels; packing needs fewer rows'
    )


def test_out_is_looked_at_before_anything_is_compiled(tiny, tmp_path, capsys, monkeypatch):
    argv = train_tiny.flags(tiny, '--method=lora', '--mesh=1,1,1')
    out = tmp_path / 'new' / 'found.json'
    assert preflight.main([*argv, f'--out={out}']) == 0
    assert json.loads(out.read_text())['config']['mesh'] == '1,1,1'
    assert preflight.main([*argv, f'--out={out}']) == 0  # the same again
    monkeypatch.setattr(preflight, 'run', lambda *args: pytest.fail('nothing is to be compiled'))
    own = tmp_path / 'own.txt'
    own.write_text('mine')
    for more, message in (
        ([f'--out={own}'], 'is no result of this program'),
        ([f'--out={tmp_path}'], 'is a folder'),
        ([f'--out={out}', '--hbm=3'], 'hbm is 0.0 there, 3.0 here'),
        ([f'--out={out}', '--mesh=2,1,1'], "mesh is '1,1,1' there, '2,1,1' here"),
    ):
        assert preflight.main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    assert own.read_text() == 'mine'


def test_a_method_without_a_formula_says_so(tiny):
    job, _ = prepared(tiny, '--method=lora+daa', mesh='1,1,1')
    assert floor.floor(job, program.shape_of(job, 8)).total is None


def test_counting_follows_scans_and_drops_what_nothing_uses():
    w, x = jnp.ones((4, 4)), jnp.ones((2, 4))

    def f(w, x):
        def body(h, _):
            unused = h @ w @ w
            del unused
            branch = jax.lax.cond(h.sum() > 0, lambda h: h @ w, lambda h: h, h)
            return branch, None

        return jax.lax.scan(body, x, length=5)[0]

    assert flops.count(jax.make_jaxpr(f)(w, x)) == 5 * 2 * 2 * 4 * 4


def test_counting_looks_into_kernels_and_takes_every_device():
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)

    def kernel(a, out):
        out[...] = a[...] @ a[...]

    def local(a):  # [2, 8, 8] on each device of x
        block = pallas.BlockSpec((None, 8, 8), lambda i: (i, 0, 0))
        call = pallas.pallas_call(
            kernel, grid=(2,), in_specs=[block], out_specs=block, interpret=True,
            out_shape=jax.ShapeDtypeStruct(a.shape, a.dtype),
        )  # fmt: skip
        return call(a) @ jnp.ones((8, 3))

    spec = PartitionSpec('x')
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={'x'}, check_vma=False
    )
    traced = jax.make_jaxpr(jax.jit(mapped))(jnp.ones((8, 8, 8)))
    inside, outside = 8 * 2 * 8 * 8 * 8, 8 * 2 * 8 * 3 * 8
    assert flops.count(traced, kernels_only=True) == inside
    assert flops.count(traced) == inside + outside


def test_collectives_of_a_compiled_loop_are_found_with_their_bytes():
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)

    def local(a):  # [8, 16] on each device
        def body(a, _):
            whole = jax.lax.all_gather(a, 'x', tiled=True)  # [32, 16]
            part = jax.lax.psum_scatter(jnp.sin(whole), 'x', tiled=True)  # [8, 16]
            turned = jax.lax.ppermute(jnp.cos(part), 'y', [(0, 1), (1, 0)])
            swapped = jax.lax.all_to_all(jnp.sin(turned), 'x', 0, 0, tiled=True)
            summed = jax.lax.psum(jnp.cos(swapped), 'y')
            return jnp.sin(summed @ jnp.ones((16, 16))), None

        return jax.lax.scan(body, a, length=5)[0]

    spec = PartitionSpec(('x', 'y'))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones((64, 16))).compile().as_text()
    visits, unknown = hlo.walk(hlo.parse(text))
    assert unknown == []
    found = traffic.by_kind(traffic.collectives(visits, 8))
    one = 8 * 16 * 4
    assert found == {
        'all-gather': {'runs': 5, 'payload': 5 * 4 * one, 'sent': 5 * 4 * one * 3 / 4},
        'reduce-scatter': {'runs': 5, 'payload': 5 * 4 * one, 'sent': 5 * 4 * one * 3 / 4},
        'all-reduce': {'runs': 5, 'payload': 5 * one, 'sent': 5 * one},
        'all-to-all': {'runs': 5, 'payload': 5 * one, 'sent': 5 * one * 3 / 4},
        'collective-permute': {'runs': 5, 'payload': 5 * one, 'sent': 5 * one},
    }
    assert traffic.matmul_flops(visits) == 5 * 2 * 8 * 16 * 16


def test_the_update_on_eight_devices_shares_its_work_and_gathers_kernels(lora):
    found = lora[1]
    assert found['loops_without_a_count'] == []
    assert 0.99 < found['chip_share'] < 1.25
    assert found['collectives']['all-gather']['runs'] >= LAYERS
    # Each device keeps its own rows for the backward pass: 8 rows over data 2 and fsdp 2. An input
    # of one layer, [2, T, D], is listed too, since there are as many rows as layers.
    shapes = [json.loads(k['array'][k['array'].index('[') :]) for k in found['kept']]
    stacked = [shape for shape in shapes if shape != [2, LENGTH, HIDDEN]]
    assert stacked
    assert all(shape[:2] == [LAYERS, 2] for shape in stacked)


def test_one_device_does_it_all_and_sends_nothing(tiny):
    job, place = prepared(tiny, mesh='1,1,1')
    found = preflight.run(job, place, batch=8)
    assert found['collectives'] == {}
    np.testing.assert_allclose(found['chip_share'], 1.0, rtol=0.01)


# What libtpu writes, cut down: a loop whose trips are in its condition, a reduce-scatter as a
# fusion, one gather in the three pieces of an asynchronous chain, batches as dilated windows, a
# kernel whose metadata goes over several lines.
TPU = """HloModule jit_update, is_scheduled=true

%all-reduce-scatter.1 (input: f32[32,128]) -> f32[4,128] {
  %input = f32[32,128]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.2 = f32[32,128]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.3 = f32[4,128]{1,0} dynamic-slice(%all-reduce.2, %input), dynamic_slice_sizes={4,128}
}

%piece.1 (p: bf16[4,128]) -> bf16[32,128] {
  %p = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="7"}
}

%piece.2 (p: bf16[4,128]) -> bf16[32,128] {
  %p = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="7"}
}

%cond (c: (s32[], f32[32,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %c = (s32[]{:T(128)}, f32[32,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (c: (s32[], f32[32,128])) -> (s32[], f32[32,128]) {
  %c = (s32[]{:T(128)}, /*index=1*/f32[32,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[32,128]{1,0:T(8,128)} get-tuple-element(%c), index=1
  %s = f32[4,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %h = bf16[4,128]{1,0} convert(%s)
  %g = bf16[32,128]{1,0} fusion(%h), kind=kCustom, calls=%piece.1
  %k = bf16[32,128]{1,0} fusion(%h), kind=kCustom, calls=%piece.2
  %plain = f32[32,32]{1,0} convolution(%g, %k), dim_labels=bf_oi->bf
  %g3 = bf16[32,1,128]{2,1,0} bitcast(%g)
  %g6 = bf16[32,2,128]{2,1,0} bitcast(%g)
  %k3 = bf16[2,128,32]{2,1,0} bitcast(%k)
  %q = bf16[16,8,128]{2,1,0} custom-call(%g)
  %v = bf16[16,8,128]{2,1,0} custom-call(%k), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[32,128]{1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(update)/while/body"}
  %padded = f32[32,2,32]{2,1,0} convolution(%g3, %k3), window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=b0f_0io->b0f
  %taps = f32[32,1,32]{2,1,0} convolution(%g6, %k3), window={size=2}, dim_labels=b0f_0io->b0f
  %batched = f32[16,8,8]{2,1,0} convolution(%q, %v), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[], f32[32,128]{1,0}) tuple(%next, %x)
}

ENTRY %main (a: f32[32,128]) -> f32[32,128] {
  %a = f32[32,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[32,128]{1,0:T(8,128)}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, f32[32,128]{1,0:T(8,128)}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[32,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_the_forms_of_a_tpu_program():
    module = hlo.parse(TPU)
    visits, unknown = hlo.walk(module)
    assert unknown == []
    found = traffic.by_kind(traffic.collectives(visits, 8))
    assert found == {
        'all-gather': {'runs': 24, 'payload': 24 * 32 * 128 * 2, 'sent': 24 * 32 * 128 * 2 * 7 / 8},
        'reduce-scatter': {
            'runs': 24,
            'payload': 24 * 32 * 128 * 4,
            'sent': 24 * 32 * 128 * 4 * 7 / 8,
        },
    }
    everyone = TPU.replace('{{0,1,2,3,4,5,6,7}}', '{}')  # one group of all
    visits_all, _ = hlo.walk(hlo.parse(everyone))
    assert everyone != TPU
    assert traffic.by_kind(traffic.collectives(visits_all, 8)) == found
    plain, batched = 2 * 32 * 32 * 128, 2 * 16 * 8 * 8 * 128
    padded = taps = 2 * plain  # two outputs of one number, and one of two
    assert traffic.matmul_flops(visits) == 24 * (plain + batched + padded + taps)
    assert traffic.kernel_runs(visits) == 24
    # A loop that counts from elsewhere, one by twos, and one that says nothing.
    assert walked(TPU.replace('constant(0)', 'constant(4)'), 'custom-call') == 20
    assert walked(TPU.replace('constant(1)', 'constant(2)'), 'custom-call') == 12
    assert walked(TPU.replace('direction=LT', 'direction=NE'), 'custom-call') == 1
    assert hlo.walk(hlo.parse(TPU.replace('direction=LT', 'direction=NE')))[1] == ['loop']
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('HloModule nothing')


def walked(text, opcode):
    """How often the first operation of this kind runs."""
    return next(v.times for v in hlo.walk(hlo.parse(text))[0] if v.op.opcode == opcode)


SHARES = {
    'a line': lambda batch, limit: (batch + 20) / (limit + 20),
    'a parabola': lambda batch, limit: (batch / max(limit, 1)) ** 2 if limit else 2.0,
    'a step': lambda batch, limit: 0.5 if batch <= limit else 2.0,
    'a crawl': lambda batch, limit: 1 - 1e-6 * (limit - batch),
}


@pytest.mark.parametrize('shape', SHARES)
@pytest.mark.parametrize('multiple', [1, 8])
@pytest.mark.parametrize('first', [1, 8, 200])
def test_the_largest_batch_is_found(shape, multiple, first):
    for limit in (0, 7, 8, 37, 64, 1000, 10**9):
        tried = []

        def share(batch, limit=limit, tried=tried):
            tried.append(batch)
            return SHARES[shape](batch, limit)

        found = largest.largest(share, multiple, first, cap=4096)
        assert found == min(limit, 4096) // multiple * multiple
        assert len(set(tried)) == len(tried) <= (5 if shape == 'a line' else 40)
        assert all(batch % multiple == 0 and 0 < batch <= 4096 for batch in tried)


def test_the_search_asks_the_compiler(tiny):
    job, place = prepared(tiny, mesh='8,1,1')
    sizes = {b: preflight.compile_batch(job, place, b)[2].total for b in (8, 16, 24)}
    assert sizes[8] < sizes[16] < sizes[24]
    limited = place._replace(hbm=float(sizes[16]))
    found = preflight.search(job, limited, first=8)
    assert found['batch'] == 16
    assert {8, 16, 24} <= found['tried'].keys()
    assert found['tried'][16] == 1.0 < found['tried'][24]
    with pytest.raises(ValueError, match='--largest needs to know what a cpu holds'):
        preflight.search(job, place, first=8)


def test_a_refusal_of_the_compiler_is_read(lora):
    job, _ = lora
    shape = program.shape_of(job, 8)
    own = sum(memory.owners(job, shape).values())
    said = (
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (71.50G) exceeds available HBM (15.75G).'
    )
    used = 'RESOURCE_EXHAUSTED: ... Used 71.50G of 15.75G hbm. Exceeded by 55.75G'
    in_tera = memory.of_refusal(job, shape, RuntimeError(used.replace('71.50G', '1.50T')))
    assert in_tera.total == 1.5 * 2**40
    for message in (said, used):
        found = memory.of_refusal(job, shape, RuntimeError(message))
        assert found.fits is False
        assert found.limit == 15.75 * 2**30
        assert found.total == 71.5 * 2**30
        assert found.temporaries == found.total - own
    assert memory.of_refusal(job, shape, RuntimeError('INTERNAL: something else')) is None


def test_the_command_prints_a_narrow_table_and_writes_json(tiny, tmp_path, capsys):
    out = tmp_path / 'found.json'
    argv = [
        *train_tiny.flags(tiny, '--method=lora', f'--mesh={MESH}'),
        '--hbm=0.0001',
        f'--out={out}',
    ]
    assert preflight.main(argv) == 0
    said = capsys.readouterr().out
    assert 'does not fit: ' in said
    assert '--hbm' in said
    for word in ('memory a chip', 'temporaries', 'floor: forward', 'all-gather', '8 x cpu'):
        assert word in said
    assert max(map(len, said.splitlines())) <= 100 + len(str(tiny))
    found = json.loads(out.read_text())
    assert found['fits'] is False
    assert report.table(found) == said.strip()


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--topology=v9:2x2'], 'v4, v5e, v5p, v6e and a shape'),
        (['--topology=v5e'], 'v4, v5e, v5p, v6e and a shape'),
        (['--model_name=EleutherAI/gpt-neo-1.3C'], 'EleutherAI/gpt-neo-1.3B'),
        (['--mesh=4,4,1'], 'needs 16 devices'),
        (['--target_modules=q_prj'], 'q_proj'),
    ],
)
def test_errors_name_what_would_do(tiny, more, message, capsys):
    assert preflight.main([*train_tiny.flags(tiny, '--method=lora'), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--method=s2'], '--method s2 has no numbers to train; add it to a method that has'),
        (['--method=ia3', '--loraplus'], '--loraplus moves the factors b'),
        (['--method=full', '--weight_decay=0.1'], '--weight_decay 0.1 shrinks the factors'),
    ],
)
def test_what_the_run_refuses_gets_no_table(tiny, more, message, capsys):
    argv = [f'--model_name={tiny / "model"}', f'--dataset={tiny / "data.jsonl"}', *more]
    assert preflight.main(argv) == 2
    assert message in capsys.readouterr().err


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *more: found(name, *more) if name != 'libtpu' else None,
    )
    with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]==" + jax.__version__):
        target.find('v5e:2x4')


def test_known_models_need_no_network_and_no_data_set():
    """The shapes of a large model, traced but not compiled: seconds, and no memory."""
    argv = [
        '--model_name=Qwen/Qwen2.5-7B',
        '--dataset=common_170k',
        '--method=lora',
        '--dtype=bfloat16',
    ]
    config, _ = cli.parse([*argv, '--mesh=1,8,1', '--batch=8'])
    job = program.prepare(config, target.find(''))
    shape = program.shape_of(job, 8)
    assert flops.count(program.trace(job, 8).jaxpr) / floor.floor(job, shape).total < 1.01
    total = 2 * 7_615_616_512 / 8
    assert total <= memory.owners(job, shape)['base'] < 1.001 * total


@pytest.fixture
def configuration():
    """JAX's settings, put back after a topology changed them."""
    kept = {
        name: getattr(jax.config, name)
        for name in ('jax_platforms', 'jax_enable_compilation_cache')
    }
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


def test_a_tpu_topology(tiny, configuration, tmp_path, capsys):
    pytest.importorskip('libtpu', reason="compiles for a TPU: needs pip install 'jaxpeft[tpu]'")
    out = tmp_path / 'found.json'
    argv = train_tiny.flags(tiny, '--method=knowhira', '--dtype=bfloat16', f'--mesh={MESH}')
    assert preflight.main([*argv, '--topology=v5e:2x4', f'--out={out}']) == 0
    assert '8 x TPU v5 lite (v5e:2x4)' in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found['fits'] is True
    assert found['memory']['limit'] == 15.75 * 2**30
    assert found['loops_without_a_count'] == []
    assert 0.99 < found['chip_share'] < 2
    assert found['collectives']['all-gather']['runs'] >= LAYERS
    # 3 million rows do not fit; the compiler refuses and its message is read.
    job = program.prepare(cli.parse(argv)[0], target.find('v5e:2x4'))
    refused = preflight.run(job, target.find('v5e:2x4'), batch=3_000_000)
    assert refused['fits'] is False
    assert refused['memory']['total'] > refused['memory']['limit'] == 15.75 * 2**30
    assert 'does not fit: ' in report.table(refused)


def test_the_attention_kernel_is_in_the_program_of_a_tpu(tiny, configuration):
    """The update of `train.run` as it is compiled for the chips: of packed rows, on a mesh."""
    pytest.importorskip('libtpu', reason="compiles for a TPU: needs pip install 'jaxpeft[tpu]'")
    place = target.find('v5e:2x4')
    found = {}
    for how in ('auto', 'plain'):
        argv = ('--max_length=128', '--dtype=bfloat16', f'--attention={how}')
        config = train_tiny.config(tiny, f'--mesh={MESH}', '--method=lora', *argv)
        found[how] = preflight.run(program.prepare(config, place), place, batch=8)
    auto, plain = found['auto'], found['plain']
    assert (plain['kernel_runs'], plain['flops']['kernels']) == (0, 0)
    # Forward and backward, in each of two branches: a global layer and a local one take turns.
    assert auto['kernel_runs'] == 2 * 2 * LAYERS
    # Scores, and the mean of values; backward the scores again, and four more products.
    tokens = 8 * 128
    assert auto['flops']['kernels'] == LAYERS * 14 * tokens * 128 * HIDDEN
    assert 0.99 < auto['chip_share'] < 1.3
