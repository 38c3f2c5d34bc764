"""Speed and memory against peers and against the floor of the machine: ``python -m benchmarks``."""
