"""Two forced CPU devices, strict promotion in library tests, and one key per test name.

What was compiled once in a session, in whatever process, is not compiled again.
"""

import collections
import hashlib
import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=2"
)
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads and XLA's slow each other down
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="kernelgrad-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)  # with a limit, JAX locks the folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets `make test` and `make test-thorough` share the tests."""
    parser.addoption("--part", choices=["quick", "thorough"], help="these alone; else all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the part that was not asked for."""
    part = config.getoption("part")
    if part is None:
        return
    left_out, cases = [], collections.Counter[str]()
    for item in items:
        thorough = item.get_closest_marker("thorough")
        if thorough is not None and item.get_closest_marker("slow") is None:
            function = item.nodeid.partition("[")[0]
            cases[function] += 1
            if cases[function] <= thorough.kwargs.get("quick", 0):
                thorough = None
        if (part == "thorough") != (thorough is not None):
            left_out.append(item)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked as slow."""
    if item.get_closest_marker("slow") and os.environ.get("KERNELGRAD_SLOW_TESTS") != "1":
        pytest.skip("slow: set KERNELGRAD_SLOW_TESTS=1")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What a file of tests compiled is dropped from memory behind it; the folder keeps it."""
    yield
    jax.clear_caches()


def _seed(request: pytest.FixtureRequest) -> int:
    return int.from_bytes(hashlib.sha256(request.node.name.encode()).digest()[:4], "big")


@pytest.fixture
def key(request):
    """A key derived from the test's name, so that adding a test changes no other."""
    return jax.random.key(_seed(request))


@pytest.fixture
def rng(request):
    """A NumPy generator derived from the test's name."""
    return np.random.default_rng(_seed(request))


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Library code never promotes ranks or dtypes silently; other libraries' code may."""
    if "experiments" in request.node.path.parts or "train_test" in request.node.path.name:
        yield
    else:
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            yield


@pytest.fixture
def loose_promotion(strict_promotion):
    """For code of other libraries that the library calls."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
