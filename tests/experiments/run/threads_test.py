"""How many threads BLAS has."""

import threadpoolctl

from experiments.run import threads


def _blas():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"]  # fmt: skip


def test_blas_has_one_thread_within_and_what_it_had_behind():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = _blas()
        with threads.one_for_blas():
            within = _blas()
        assert _blas() == before
    assert within
    assert set(within) == {1}
