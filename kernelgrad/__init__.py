"""Kernel methods for generative modelling in JAX."""
