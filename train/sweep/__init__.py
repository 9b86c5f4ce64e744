"""Sweeps as one program: K runs that share shapes train at once, the base's weights read once.

The adapter is a tree of its own, so `jax.vmap` over adapters and optimizer states, and not over the
base, makes K runs one program. Each member has its own seed (start, order of the rows, validation
rows, dropout), learning rate, weight decay and float options of its methods:

    members = [sweep.Member(lr=1e-3, options={'alpha': 16.0}), sweep.Member(seed=1, lr=3e-3)]
    built = model.setup(config, fresh=False)            # the base, once; config names the method
    examples = feed.examples(config, built.tokenizer)   # the data, once
    outcome = sweep.train(config, built, examples, members, on_eval=judge)
    outcome.runs[0].state, outcome.runs[0].ledger.best_loss, outcome.runs[0].validation

What a member leaves out (None) is the configuration's. Every member ends with the numbers that
`train.loop` gives it alone (losses to 1e-5). `config.validation` says when validation happens; then

    def judge(look: sweep.Look) -> Iterable[int] | None    # look.step, look.losses {member: loss}

may return the numbers of members to drop (pruning). A member is also dropped where its loss is not
finite, and where `early_stop_patience` ends it; `run.why` says which. Dropped members keep their
place in the program, uncounted, until half of the places are idle; then the survivors are gathered
and the program is compiled anew for their number: at most log2 K times.

Members of one program share every shape and every word: rank, init, targets, batch. What may differ
is a float that the method's formulas take as a number (alpha, knowledge_alpha, ortho_lambda, beta,
gamma, gate_init, ...). `sweep.groups(config, members)` sorts members into lists that can train
together; `train` refuses a mixed list and says why.

`python -m train.sweep --bench` measures K together against K in turn.
"""

from train.sweep.loop import Outcome, train
from train.sweep.members import Member, config_of, groups
from train.sweep.state import Look, Run

__all__ = ['Look', 'Member', 'Outcome', 'Run', 'config_of', 'groups', 'train']
