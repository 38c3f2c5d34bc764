"""Two ways to see how much memory a function takes: by its traced arrays, and by running it."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

needs_proc = pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="reads Linux's /proc/self/status"
)

_SCRIPT = """
import pathlib
import jax, jax.numpy as jnp, numpy as np
from kernelgrad import kernels, median, pairwise

def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

rng = np.random.default_rng(0)
{}
compiled = jax.jit(fn).lower(*arguments).compile()
before = peak()
jax.block_until_ready(compiled(*arguments))
print((peak() - before) / 1024)
"""


def peak_megabytes(source):
    """What running `fn(*arguments)`, both bound by the source, adds to a fresh process's peak.

    VmHWM, because the ru_maxrss of a child starts from that of its parent.
    """
    command = [sys.executable, "-c", _SCRIPT.format(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def largest_buffer(fn, *arguments):
    """The number of entries of the largest array that the traced program ever makes."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (np.prod(v.aval.shape, dtype=float) for v in equation.outvars)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
                if _is_program(parameter):
                    yield from sizes(getattr(parameter, "jaxpr", parameter))

    return max(sizes(jax.make_jaxpr(fn)(*arguments).jaxpr))


def _is_program(parameter):
    return hasattr(getattr(parameter, "jaxpr", parameter), "eqns")


def compiled_megabytes(fn, *shapes):
    """What the compiled program keeps besides float32 arrays of these shapes and its outputs."""
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    compiled = jax.jit(fn).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20
