"""bind: on every form of a Linen model, and its refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxpeft as jp
from tests import toys


@pytest.mark.parametrize('form', toys.FORMS)
def test_bound_equals_merged_and_starts_as_the_base(form, key):
    model, params, plan, state, x = toys.setup(form, jp.methods.knowhira(rank=3), key)
    forward = jax.jit(jp.bind(plan, model.apply))
    plain = model.apply({'params': params}, x)
    assert toys.worst(forward(state, {'params': params}, x), plain) <= 1e-5
    state = toys.moved(state, key, 0.5)
    merged = model.apply({'params': jp.merge(plan, state, params)}, x)
    bound = forward(state, {'params': params}, x)
    assert toys.worst(bound, merged) <= 1e-5
    assert toys.worst(bound, plain) > 1e-2  # the warm jit saw the new state


def test_scan_and_loop_agree_given_the_same_numbers(key):
    """A scanned stack of adapters is the same function as its layers applied one by one."""
    model, params, plan, state, x = toys.setup('scan', jp.methods.lora(rank=3), key)
    state = toys.moved(state, key)
    flat = lambda tree: {
        **{f'block_{i}': jax.tree.map(lambda p, i=i: p[i], tree['layers']) for i in range(3)},
        **({'head': tree['head']} if 'head' in tree else {}),
    }
    loop = jp.State(flat(state.params), {})
    want = jp.bind(plan, model.apply)(state, {'params': params}, x)
    forward = jp.bind(toys.plan_of(jp.methods.lora(rank=3), 'plain'), toys.Toy('plain').apply)
    assert toys.worst(forward(loop, {'params': flat(params)}, x), want) <= 1e-5


def test_works_under_vmap_and_grad(key):
    model, params, plan, state, x = toys.setup('scan+remat', jp.methods.hira(rank=2), key)
    state = toys.moved(state, key)
    forward = jp.bind(plan, model.apply)
    loss = lambda p, x: jnp.mean(forward(jp.State(p, state.consts), {'params': params}, x) ** 2)
    grads = jax.jit(jax.grad(loss))(state.params, x)
    assert all(bool(jnp.abs(g).max() > 0) for g in jax.tree.leaves(grads))
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(state.params, x)
    mean = jax.tree.map(lambda g: g.mean(0), each)
    assert toys.worst(mean, grads) <= 1e-6


class OwnEinsum(nn.Module):
    """Multiplies its kernel by an einsum of its own: bind cannot see the product."""

    features: int = 4

    @nn.compact
    def __call__(self, x):
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return jnp.einsum('...n,nm->...m', x, kernel)


class OwnCall(nn.Dense):
    """A subclass of Dense with a call of its own is not Dense."""

    @nn.compact
    def __call__(self, inputs):
        return 2.0 * super().__call__(inputs)


class Holder(nn.Module):
    cls: type = OwnEinsum

    @nn.compact
    def __call__(self, x):
        return self.cls(4, name='inner')(x)


@pytest.mark.parametrize('cls', [OwnEinsum, OwnCall])
def test_refuses_to_leave_an_adapter_unread(cls, key):
    model, x = Holder(cls), jnp.ones((2, 3))
    params = model.init(key, x)['params']
    plan = {'inner/kernel': jp.methods.lora(rank=2)}
    state = jp.init(plan, key, params)
    with pytest.raises(ValueError, match=rf'inner/kernel in {cls.__name__}[\s\S]*layers='):
        jax.jit(jp.bind(plan, model.apply))(state, {'params': params}, x)


def test_a_layer_rule_adapts_what_bind_does_not_know(key):
    model, x = Holder(), jnp.ones((2, 3))
    params = model.init(key, x)['params']
    plan = {'inner/kernel': jp.methods.lora(rank=2)}
    state = toys.moved(jp.init(plan, key, params), key)
    rule = lambda module, adapted, x: adapted['kernel'](x)
    forward = jp.bind(plan, model.apply, layers={OwnEinsum: rule})
    merged = model.apply({'params': jp.merge(plan, state, params)}, x)
    assert toys.worst(forward(state, {'params': params}, x), merged) <= 1e-5


def test_a_view_that_the_layer_contradicts_is_an_error(key):
    model, x = toys.Toy('plain'), jnp.ones((2, 7, 16))
    params = model.init(key, x)['params']
    plan = {'block_0/heads/kernel': jp.methods.lora(rank=2)}  # [16, 4, 4] read as 16 of [4, 4]
    state = jp.init(plan, key, params)
    with pytest.raises(
        ValueError, match=r"DenseGeneral reads its kernel.*jp.on\(method, 'i \(h d\)'"
    ):
        jp.bind(plan, model.apply)(state, {'params': params}, x)


def test_a_dot_general_of_its_own_is_an_error(key):
    model, x = nn.Dense(4, dot_general=jax.lax.dot_general), jnp.ones((2, 3))
    params = model.init(key, x)['params']
    plan = {'kernel': jp.methods.lora(rank=2)}
    with pytest.raises(ValueError, match='dot_general of its own'):
        jp.bind(plan, model.apply)(jp.init(plan, key, params), {'params': params}, x)


def test_dropout_needs_a_key_and_differs_between_layers(key):
    method = jp.methods.lora(rank=2, dropout=0.5)
    model, params, plan, state, x = toys.setup('scan', method, key)
    state = toys.moved(state, key)
    forward = jp.bind(plan, model.apply)
    run = lambda k: forward(state, {'params': params}, x, dropout_key=k)
    merged = model.apply({'params': jp.merge(plan, state, params)}, x)
    assert toys.worst(run(None), merged) <= 1e-5
    assert toys.worst(run(key), run(key)) == 0
    assert toys.worst(run(key), run(jax.random.key(9))) > 1e-3
    keys = jp.tree.layer_keys(key, 'layers/up/kernel', (3,))
    assert len({tuple(k) for k in jax.random.key_data(keys).tolist()}) == 3


def test_an_old_style_key_is_the_same_as_the_typed_one(key):
    *_, plan, state, _ = toys.setup('plain', jp.methods.lora(rank=2), key)
    _, params, *_ = toys.setup('plain', jp.methods.lora(rank=2), key)
    old = jp.init(plan, jax.random.key_data(key), params)
    assert toys.worst(old.params, state.params) == 0


def test_an_empty_plan_is_the_model_itself(key):
    model, params, _, _, x = toys.setup('plain', jp.methods.lora(rank=2), key)
    out = jp.bind({}, model.apply)(jp.State({}, {}), {'params': params}, x)
    assert toys.worst(out, model.apply({'params': params}, x)) == 0


class Core(nn.Module):
    """A module without parameters, as an attention core is."""

    def __call__(self, x, *, gain):
        return jnp.tanh(x) * gain


class WithCore(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = Core(name='core')(nn.Dense(x.shape[-1], name='proj')(x), gain=2.0)
        return x, None


def _shift(stack=()):
    """An override that adds a learned vector to a module's output."""

    def call(state, next_call, *args, key=None, side=None, **kwargs):
        del key
        return next_call(*args, **kwargs) + state.params['m'] + (0.0 if side is None else side)

    init = lambda key: jp.State({'m': jax.random.normal(key, (1, 3))}, {})
    penalty = lambda state: jnp.sum(state.params['m'] ** 2)
    return jp.Override({'name': 'shift', 'stack': stack}, init, call, penalty)


@pytest.mark.parametrize('scanned', [False, True])
def test_an_override_takes_a_module_without_parameters(scanned, key, tmp_path):
    stack, x = (2,) if scanned else (), jnp.ones((2, 3))
    holder = _Held(scanned)
    params = holder.init(key, x)['params']
    plan = {'held/core': _shift(stack), r'held/proj/kernel': jp.methods.lora(rank=1)}
    state = jp.init(plan, key, params)
    nowhere = {'held/proj/core': _shift(stack)}
    with pytest.raises(ValueError, match='held/proj/core in a module that was not called'):
        jp.bind(nowhere, holder.apply)(jp.init(nowhere, key, params), {'params': params}, x)
    assert state.params['held']['core']['~']['m'].shape == (*stack, 1, 3)
    out = jp.bind(plan, holder.apply)(state, {'params': params}, x)
    assert toys.worst(out, holder.apply({'params': params}, x)) > 1e-3
    sided = jp.bind(plan, holder.apply)(state, {'params': params}, x, side=jnp.ones((1, 1)))
    assert toys.worst(sided, out) > 1e-3
    want = jnp.sum(state.params['held']['core']['~']['m'] ** 2)
    assert toys.worst(jp.penalty(plan, state, params), want) <= 1e-6
    assert jp.count(state) == state.params['held']['core']['~']['m'].size + (
        6 if not scanned else 12
    )
    with pytest.raises(ValueError, match='shift depends on its input'):
        jp.merge(plan, state, params)
    jp.save_adapter(tmp_path / 'a', plan, state, params)
    _, loaded = jp.load_adapter(tmp_path / 'a', params, methods={'shift': _shift})
    assert toys.worst(loaded.params, state.params) == 0


class _Held(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
        block = WithCore
        if self.scanned:
            block = nn.scan(
                block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
            )
        return block(name='held')(x, None)[0]


@pytest.mark.parametrize('axis', [(-2, -1), (-1, -2), (2, 1)])
def test_the_axes_of_a_dense_general_may_come_in_any_order(axis, key):
    model, x = nn.DenseGeneral(5, axis=axis), jax.random.normal(key, (2, 3, 4))
    params = model.init(key, x)['params']
    plan = {'kernel': jp.on(jp.methods.lora(rank=2), '(h d) o')}
    state = toys.moved(jp.init(plan, key, params), key)
    merged = model.apply({'params': jp.merge(plan, state, params)}, x)
    assert toys.worst(jp.bind(plan, model.apply)(state, {'params': params}, x), merged) <= 1e-5


@pytest.mark.parametrize('name', ['lora', 'hira', 'knowhira', 'dora'])
def test_the_layers_precision_holds_in_the_backward_pass_too(name, key):
    model, x = nn.Dense(4, precision='highest'), jnp.ones((64, 4))
    params = model.init(key, x)['params']
    plan = {'kernel': getattr(jp.methods, name)(rank=2)}
    state, forward = jp.init(plan, key, params), jp.bind(plan, model.apply)
    loss = lambda trained: forward(state._replace(params=trained), {'params': params}, x).sum()
    products = str(jax.make_jaxpr(jax.grad(loss))(state.params)).split('dot_general[')[1:]
    assert len(products) >= 6
    assert all('Precision.HIGHEST' in one.split('\n ] ')[0][:300] for one in products)


def test_an_apply_that_was_jitted_before_is_an_error_that_says_so(key):
    model, x = nn.Dense(4), jnp.ones((2, 3))
    params = model.init(key, x)['params']
    plan = {'kernel': jp.methods.lora(rank=2)}
    state, jitted = jp.init(plan, key, params), jax.jit(model.apply)
    forward = jp.bind(plan, jitted)
    forward(state, {'params': params}, x)
    with pytest.raises(ValueError, match='jit what bind returns'):
        forward(state, {'params': params}, x)
