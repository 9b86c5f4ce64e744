"""`python -m train.preflight`: what a training run needs, before anyone rents hardware.

The update that `train.run` makes is compiled ahead of time from shapes alone, for chips that need
not be here, and the compiled program is read:

    target       the devices: a TPU topology, or this machine's; how much memory a chip has
    program      the real update (train.step) on them, with every argument as a shape
    memory       bytes a chip, and whose they are
    floor        the arithmetic that the method cannot do without
    flops        the arithmetic that the traced update asks for
    hlo          the compiled program as text: its operations, and how often each one runs
    traffic      the collectives among them, and the matrix products of one chip
    largest      the largest batch that fits
    report       all of it as one dict, and as a table
"""
