"""Real rows of the commonsense tasks: packed, answer-only, against padded batches in torch."""

from eval.bench.families.steps import step
from eval.bench.rows import STEP, TIMED, Row


def rows() -> list[Row]:
    """One row: the time of an update of 16 examples, which are the same on both sides."""
    return [
        Row(
            'commonsense',
            'LoRA, commonsense rows / PEFT',
            step('ours', 'lora', 'attention', 'commonsense'),
            step('hf', 'lora', 'attention', 'commonsense'),
            0.33,
            'commonsense',
            agree=STEP,
            batches=TIMED,
            note='updates of 16 examples (4 if quick), all together: ours packed in the shapes of '
            'an epoch of commonsense_170k, theirs padded',
        )
    ]
