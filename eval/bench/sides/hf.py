"""The training step of Hugging Face: transformers' model, PEFT's adapter, torch's AdamW."""

from collections.abc import Callable
from typing import Any

from eval.bench import questions
from eval.bench.context import LR, Context, adapter_folder, base_folder, tokens


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A training step with the adapter that our side has written; each call is one update.

    Args:
      context: the shape.
      spec: as that of `eval.bench.sides.ours`.

    Raises:
      ImportError: without torch, transformers and peft.
    """
    import torch

    torch.set_num_threads(context.threads)
    model = load(context, spec)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    batches = _batches(context, spec['labels'])
    done = 0

    def call() -> dict[str, Any]:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batches(done), use_cache=False).loss
        (loss + _penalty(model, spec['method'])).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        done += 1
        return {'loss': float(loss), 'grad_norm': float(norm)}

    return call


def load(context: Context, spec: dict[str, Any]) -> Any:
    """transformers' model of the base with PEFT's adapter, in training mode."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base_folder(context))
    folder = adapter_folder(context, spec['method'], spec['targets']) / 'peft'
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True).train()


def _penalty(model: Any, method: str) -> Any:
    """KaSA's regularization, which PEFT leaves to the training loop to add."""
    return model.base_model._get_kasa_loss() if method == 'kasa' else 0.0


def _batches(context: Context, labels: str) -> Callable[[int], dict[str, Any]]:
    import torch

    if labels == 'commonsense':
        pad = 50256  # GPT-2 has no padding token: its end token is the usual one

        def real(step: int) -> dict[str, Any]:
            found = questions.padded(context, step, pad)
            return {name: torch.from_numpy(x) for name, x in found.items()}

        return real
    ids = torch.from_numpy(tokens(context)).long()
    batch = {'input_ids': ids, 'labels': ids}
    return lambda step: batch
