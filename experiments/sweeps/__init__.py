"""Sweeps: grids of training runs, the engines that run them, and what they come to."""
