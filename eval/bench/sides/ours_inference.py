"""Our label scoring and greedy generation, as `eval.run` calls them."""

from collections.abc import Callable
from typing import Any

import jaxpeft as jp
from eval import decode, scoring
from eval.bench import questions
from eval.bench.context import Context
from eval.bench.sides import ours
from train import cache

NO_END = -1  # no token has this number: every row gets all its new tokens


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """One pass over the rows.

    Args:
      context: the shape.
      spec: what ('score' or 'generate') and batch.
    """
    cache.enable()
    _, model, params = ours.base(context)
    run = jp.bind({}, model.apply), jp.State({}, {}), params, model
    if spec['what'] == 'generate':
        prompts = questions.prompts(context, spec['batch'])
        count = questions.new_tokens(context)
        # Once for all rows of a task, as transformers has its weights ready when they are loaded.
        loop = jp.models.apart(params)

        def generate() -> dict[str, Any]:
            rows = decode.generate(
                *run, prompts, new_tokens=count, eos=NO_END, batch=spec['batch'], loop=loop
            )
            return {'tokens': questions.digest(rows)}

        return generate
    asked = questions.asked(context)

    def score() -> dict[str, Any]:
        found = scoring.loglik(
            *run, [q.prompt for q in asked], [q.outputs for q in asked], batch=spec['batch']
        )
        return {'score': questions.spread(found)}

    return score
