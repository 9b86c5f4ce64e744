"""The adapters of the benchmark: drawn once, kept as our folder and as PEFT's, so that both sides
start from the very same numbers.

A fresh adapter would leave half of its gradients zero; here b and the magnitudes are moved a
little. KnowHiRA starts at HiRA's update: `a` divided by the weight of each rank, so that the first
loss is that of PEFT's HiRA, which has no KnowHiRA.
"""

import os
from typing import Any

import jax
import numpy as np

import jaxpeft as jp
from eval.bench.context import Context, adapter_folder

TARGETS = {'attention': 'q_proj,k_proj,v_proj,o_proj', 'linear': 'all-linear'}
IN_PEFT = ('lora', 'hira', 'dora', 'kasa')
MOVED = 0.02  # of b, as large as the base's own weights; of the magnitudes in relation to them


def plan_of(context: Context, method: str, targets: str, params: Any) -> dict[str, Any]:
    """The plan of a method with the context's rank on 'attention' or 'linear' layers."""
    made = jp.methods.get(method)(rank=context.rank)
    return {jp.targets(params, TARGETS[targets]): made}


def get(context: Context, method: str, targets: str, params: Any) -> tuple[Any, jp.State]:
    """The plan and the adapter over `params`; written to its folder by the first who asks."""
    folder = adapter_folder(context, method, targets)
    if folder.exists():
        return jp.load_adapter(folder / 'native', params)
    plan = plan_of(context, method, targets, params)
    state = jp.init(plan, jax.random.key(0), params)
    if method == 'knowhira':
        state = _as_hira(state, get(context, 'hira', targets, params)[1])
    else:
        state = _moved(state)
    part = folder.with_name(f'{folder.name}.{os.getpid()}')
    jp.save_adapter(part / 'native', plan, state, params)
    if method in IN_PEFT:
        jp.export_peft(part / 'peft', plan, state, params)
    part.rename(folder)
    return plan, state


def _moved(state: jp.State) -> jp.State:
    rng = np.random.default_rng(2)

    def move(path: tuple, leaf: Any) -> Any:
        noise = np.float32(MOVED) * rng.standard_normal(leaf.shape, np.float32)
        return {'b': leaf + noise, 'm': leaf * (1 + noise)}.get(path[-1].key, leaf)

    return state._replace(params=jax.tree_util.tree_map_with_path(move, state.params))


def _as_hira(state: jp.State, hira: jp.State) -> jp.State:
    """KnowHiRA's state with the update of a HiRA: `alpha a' diag(sigma sigmoid(gate)) = a`."""

    def fill(node: Any, consts: Any, other: Any) -> Any:
        if 'gate' not in node:
            return {name: fill(node[name], consts[name], other[name]) for name in node}
        alpha = 0.6  # jp.methods.knowhira's knowledge_alpha
        weight = alpha * consts['sigma'] * jax.nn.sigmoid(node['gate'])
        return {**node, 'a': other['a'] / weight[..., None, :], 'b': other['b']}

    return state._replace(params=fill(state.params, state.consts, hira.params))
