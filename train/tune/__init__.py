"""Hyper-parameter search: `python -m train.tune --method hylorada --n_trials 20`.

    space     what is searched, and a trial's values in a configuration
    study     Optuna's study in the search's folder: who asks, what a killed process left
    budget    how many numbers a trial would train, before anything is trained
    trials    a batch of trials through `train.sweep`; pruning
    outputs   best.yaml, trials.csv, trials.json, the table
    plots     history.png, importance.png

A method says what is worth searching in its own file, beside TARGETS:

    SEARCH = {'rank': ('choice', 4, 8, 16), 'gate_init': ('float', -1.0, 1.0),
              'beta': ('float', 1e-6, 1e-2, 'log')}

Keys are the factory's arguments, or `alpha_ratio` (alpha = ratio * rank). The learning rate comes
by itself. Nothing else has to be told of a new method.
"""
