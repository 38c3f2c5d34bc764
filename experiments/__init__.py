"""Experiment binaries built on kernelgrad."""

from experiments.run import places

places.settle_matplotlib()
