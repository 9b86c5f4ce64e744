"""The same in transformers: a padded batch through the model, and its own `generate`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval.bench import questions
from eval.bench.context import Context, base_folder

PAD = 50256


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """One pass over the rows; `spec` as that of `eval.bench.sides.ours_inference`.

    Raises:
      ImportError: without torch and transformers.
    """
    import torch
    import transformers

    torch.set_num_threads(context.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(base_folder(context)).eval()
    if spec['what'] == 'generate':
        return _generate(context, model, spec['batch'])
    asked = questions.asked(context)
    pairs = [(i, q.prompt, output) for i, q in enumerate(asked) for output in q.outputs]

    def score() -> dict[str, Any]:
        found: list[list[float]] = [[] for _ in asked]
        with torch.inference_mode():
            for first in range(0, len(pairs), spec['batch']):
                part = pairs[first : first + spec['batch']]
                for (i, _, _), value in zip(part, _scores(model, part), strict=True):
                    found[i].append(value)
        return {'score': questions.spread([np.array(row) for row in found])}

    return score


def _scores(model: Any, part: list[tuple]) -> list[float]:
    """The summed log-probabilities of the outputs, each after its prompt, right-padded."""
    import torch

    width = max(len(p) + len(o) for _, p, o in part)
    ids = torch.full((len(part), width), PAD)
    mask = torch.zeros((len(part), width), dtype=torch.long)
    for row, (_, prompt, output) in enumerate(part):
        text = torch.from_numpy(np.concatenate([prompt, output])).long()
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    logp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
    picked = logp[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
    return [
        float(picked[row, len(p) - 1 : len(p) + len(o) - 1].sum())
        for row, (_, p, o) in enumerate(part)
    ]


def _generate(context: Context, model: Any, batch: int) -> Callable[[], dict[str, Any]]:
    import torch

    prompts = torch.from_numpy(np.stack(questions.prompts(context, batch))).long()
    count = questions.new_tokens(context)

    def generate() -> dict[str, Any]:
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=PAD,
            )
        return {'tokens': questions.digest(list(out[:, prompts.shape[1] :].numpy()))}

    return generate
