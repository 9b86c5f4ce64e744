"""jaxpeft: parameter-efficient fine-tuning of language models in JAX/Flax.

Two trees, always: the base's parameters, which nothing changes, and the adapter's `State`.

    plan = {jp.targets(params, ['q_proj', 'v_proj']): jp.methods.knowhira(rank=32)}
    state = jp.init(plan, key, params)
    forward = jp.bind(plan, model.apply)
    logits = forward(state, {'params': params}, tokens)
"""

from jaxpeft import methods as methods
from jaxpeft import models as models
from jaxpeft.adapters import load_adapter as load_adapter
from jaxpeft.adapters import save_adapter as save_adapter
from jaxpeft.base import Method as Method
from jaxpeft.base import Override as Override
from jaxpeft.base import State as State
from jaxpeft.counts import count as count
from jaxpeft.counts import summary as summary
from jaxpeft.linen import bind as bind
from jaxpeft.paths import targets as targets
from jaxpeft.peft import export_merged as export_merged
from jaxpeft.peft import export_peft as export_peft
from jaxpeft.peft import import_peft as import_peft
from jaxpeft.plans import compose as compose
from jaxpeft.prepare import Prepared as Prepared
from jaxpeft.prepare import prepare as prepare
from jaxpeft.sharding import shardings as shardings
from jaxpeft.tree import Plan as Plan
from jaxpeft.tree import cast as cast
from jaxpeft.tree import init as init
from jaxpeft.tree import merge as merge
from jaxpeft.tree import penalty as penalty
from jaxpeft.views import layerwise as layerwise
from jaxpeft.views import on as on

__version__ = '0.1.0'
