"""Experiment binaries built on kernelgrad."""
