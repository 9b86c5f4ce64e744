"""Evaluation: `python -m eval.run` and the programs around it."""

from train import pages as pages  # importing train asks for huge pages, for these programs as well
