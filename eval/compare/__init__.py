"""`python -m eval.compare`: every method on the same base, data and budget, and one table.

    entries   which methods, with which options, seeds and learning rates
    match     the rank at which a method trains as many numbers as the reference
    jobs      what has to be done, and the JSON file that says that it was
    worker    does it: a process of its own a job, an ordinary run of train.run each
    forget    the base's perplexity on other text, before and after
    cost      what a run needs alone: memory by the compiler and of the process, seconds
    figures   the finished files -> figures a method, with intervals over seeds
    table     the Markdown table
    plots     a Pareto plot a pair of axes

Everything that is finished lies in --out_dir as small JSON files; a second start reads them and
does the rest. Weights and checkpoints lie in --work_dir, which may be lost.
"""
