"""qwix's LoRA on our Linen model, with our loss, optimizer and adapter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eval.bench import adapters
from eval.bench.context import Context
from eval.bench.sides import ours
from jaxpeft import paths
from train import cache, optimizer
from train import mesh as meshes


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A LoRA step; each call is one update.

    All labelled, the arithmetic is that of our step: the same loss over chunks of the head. Answer
    only, the head runs at every position and the unlabelled ones weigh 0: qwix has no part in
    where a head runs, and a training loop around it masks.

    Raises:
      ImportError: without qwix.
    """
    import qwix

    cache.enable()
    mesh, model, params = ours.base(context)
    plan, state = adapters.get(context, 'lora', spec['targets'], params)
    (rule,) = plan.values()
    provider = qwix.LoraProvider(
        module_path='.*/(q_proj|k_proj|v_proj|out_proj)',
        rank=context.rank,
        alpha=rule.spec['alpha'],
    )
    adapted = qwix.apply_lora_to_model(model, provider)
    whole = meshes.replicated(mesh)  # or the second call would compile anew
    trained = jax.device_put(_renamed(state.params), whole)
    batch = _batch(context, spec['labels'])
    tx = optimizer.make(ours.OPTIM, optimizer.schedule(ours.OPTIM, total=1))

    def loss_of(trained: Any, params: Any, batch: Any) -> jax.Array:
        nll = adapted.apply(
            {'params': _joined(params, trained)},
            batch['tokens'],
            positions=batch['positions'],
            segment_ids=batch['segment_ids'],
            packed=True,  # the same attention as ours: by blocks
            select=batch['select'],
            labels=batch['labels'],
        )
        return jnp.sum(nll * batch['weights']) / jnp.sum(batch['weights'])

    def update(trained: Any, moments: Any, params: Any, batch: Any) -> tuple:
        loss, grads = jax.value_and_grad(loss_of)(trained, params, batch)
        changes, moments = tx.update(grads, moments, trained)
        return optax.apply_updates(trained, changes), moments, loss, optax.tree.norm(grads)

    compiled = jax.jit(update, donate_argnums=(0, 1), out_shardings=whole)
    moments = jax.device_put(tx.init(trained), whole)

    def call() -> dict[str, Any]:
        nonlocal trained, moments
        trained, moments, loss, norm = jax.block_until_ready(
            compiled(trained, moments, params, batch)
        )
        return {'loss': float(loss), 'grad_norm': float(norm)}

    return call


def _batch(context: Context, labels: str) -> dict[str, np.ndarray]:
    """Our batch; answer-only with every position selected and the unlabelled ones weighing 0."""
    full = ours.batch_of(context, 'all')
    if labels == 'all':
        return full
    chosen = ours.batch_of(context, labels)['select']
    return full | {'weights': np.isin(full['select'], chosen).astype(np.float32)}


def _renamed(params: Any) -> Any:
    """Our `kernel/a`, `kernel/b` under qwix's names beside the kernel."""
    return paths.nest(
        {
            f'{path.rpartition("/")[0]}_lora_{path.rpartition("/")[2]}': leaf
            for path, leaf in paths.flatten(params)
        }
    )


def _joined(params: Any, trained: Any) -> Any:
    return paths.nest(dict(paths.flatten(params)) | dict(paths.flatten(trained)))
