"""Training: `python -m train.run` and the programs around it."""

from train import pages

pages.ask()  # before anything heavy is imported
