"""Experiment binaries built on kernelgrad."""

from experiments import places

places.settle_matplotlib()
