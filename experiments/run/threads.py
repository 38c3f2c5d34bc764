"""How many threads the libraries beneath JAX may use."""

import scipy.linalg  # noqa: F401 - JAX calls its BLAS, which must be loaded before it is limited
from threadpoolctl import threadpool_limits


def one_for_blas() -> threadpool_limits:
    """Returns the context in which LAPACK runs on one thread.

    Its threads and those of XLA spin against each other: on two cores a training step with two
    Cholesky solves took 26 ms under two threads of OpenBLAS and 15 ms under one.
    """
    return threadpool_limits(1, user_api="blas")
