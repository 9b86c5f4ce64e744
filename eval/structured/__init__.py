"""Does knowing a text's structure help an adapter? A few methods on one task, at equal size.

    task:    examples, what is known beside their tokens, and how to hide a suffix
    arms:    the methods that are compared, with ranks that give them equal numbers to train
    engine:  the compiled programs of one arm: training (train.step) and measuring
    suffix:  whether a loss changes when the text behind it does
    runs:    single runs, each a JSON that is made once
    study:   learning rates on validation rows, then the seeds
    summary: means and intervals over seeds, and what they allow to say
    report:  table, Markdown and plot

`eval.code` and `eval.structures` are the programs; `code`, `series` and `graph` make their tasks.
"""
