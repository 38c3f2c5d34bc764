"""The counter of programs against counts by hand, and the predictions made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import floors, roofline, rows
from benchmarks.counts import Counter, Counts

N = 8
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
PRODUCT = 2 * N**3


@pytest.fixture(autouse=True)
def strict_promotion():
    """Programs here are as small as they can be, with promotion."""


def dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def products(fn, *args, **settings):
    return Counter(**settings)(fn, *args).products


def scanned(a):
    return lax.scan(lambda c, _: (dot(c, a), None), a, None, length=10)[0]


def test_a_scan_counts_its_body_as_often_as_it_runs():
    assert Counter()(scanned, SQUARE).products == 10 * PRODUCT
    assert Counter()(scanned, SQUARE).calls == 10
    assert Counter()(lambda a: lax.fori_loop(0, 4, lambda _, c: c + a, a), SQUARE).calls == 4


def test_the_compiled_programs_own_counts_have_it_once():
    flops = jax.jit(scanned).lower(SQUARE).compile().cost_analysis()["flops"]
    assert PRODUCT <= flops < 1.1 * PRODUCT


@pytest.mark.parametrize(("start", "turns"), [(0, 10), (3, 7), (12, 0)])
def test_a_fori_loop_runs_from_its_start_to_its_end(start, turns):
    def constant(a):
        return lax.fori_loop(start, 10, lambda _, c: dot(c, a), a)

    def counted(a):  # a while loop, for the start is an array
        return lax.fori_loop(jnp.int32(start), 10, lambda _, c: dot(c, a), a)

    assert products(constant, SQUARE) == turns * PRODUCT
    assert products(counted, SQUARE) == turns * PRODUCT


def test_a_triangle_of_loops_counts_every_pair_once():
    def row(i, c):
        return lax.fori_loop(i + 1, 6, lambda _, c: dot(c, c), c)

    def twice(c):  # in a loop that knows nothing, and after another
        return lax.map(lambda c: lax.fori_loop(0, 6, row, c), jnp.stack([c, c, c]))

    assert products(lambda c: lax.fori_loop(0, 6, row, c), SQUARE) == 15 * PRODUCT
    assert products(twice, SQUARE) == 3 * 15 * PRODUCT


def test_a_loop_that_ends_by_what_it_finds_counts_as_often_as_is_stated():
    def until(c):
        return lax.while_loop(lambda c: jnp.sum(c) < 5, lambda c: dot(c, c), c)

    counter = Counter(passes=4)
    assert counter(until, SQUARE).products == 4 * PRODUCT
    assert counter.assumed
    again = Counter(passes=4)  # begun again, as long as what it found will not do

    def twice(c):
        return lax.while_loop(lambda c: jnp.sum(c) > 9, lambda c: dot(until(c), c), c)

    assert again(twice, SQUARE).products == 5 * PRODUCT
    assert again.assumed
    other = Counter(passes=4)
    other(scanned, SQUARE)
    assert not other.assumed


def test_of_branches_one_counts():
    def either(flag, a):
        return lax.cond(flag, lambda a: dot(dot(a, a), a), lambda a: dot(a, a), a)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert products(either, flag, SQUARE) == PRODUCT
    assert products(either, flag, SQUARE, dear=True) == 2 * PRODUCT


def test_of_platforms_one_counts():
    def by_platform(a):
        return lax.platform_dependent(a, cpu=lambda a: dot(dot(a, a), a), default=lambda a: a + a)

    assert products(by_platform, SQUARE, platform="cpu") == 2 * PRODUCT
    assert products(by_platform, SQUARE, platform="cuda") == 0


def _with_rule(a):
    fn = jax.custom_jvp(lambda a: dot(a, a))
    fn.defjvp(lambda primals, tangents: (fn(*primals), tangents[0]))
    return fn(a)


def _with_backward_rule(a):
    fn = jax.custom_vjp(lambda a: dot(a, a))
    fn.defvjp(lambda a: (dot(a, a), None), lambda _, bar: (bar,))
    return fn(a)


def _with_batching_rule(a):
    fn = jax.custom_batching.custom_vmap(lambda a: dot(a, a))
    fn.def_vmap(lambda size, batched, a: (dot(a, a), batched[0]))
    return fn(a)


def _over_devices(a):
    mesh = jax.make_mesh((1,), ("i",), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(lambda a: dot(a, a), mesh=mesh, in_specs=spec, out_specs=spec)(a)


@pytest.mark.parametrize(
    "fn",
    [
        jax.jit(lambda a: dot(a, a)),
        jax.checkpoint(lambda a: dot(a, a)),
        _with_batching_rule,
        _with_rule,
        _with_backward_rule,
        _over_devices,
    ],
)
def test_functions_within_functions_count(fn):
    assert products(fn, SQUARE) == PRODUCT


def test_a_product_counts_by_its_shape_batch_and_precision():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 3, 7), (5, 7, 2)))
    assert Counter()(dot, a, b).products == 2 * 5 * 3 * 7 * 2
    plain = Counter()(jnp.matmul, a, b)
    assert (plain.products, plain.loose) == (0, 2 * 5 * 3 * 7 * 2)


def test_a_convolution_counts_the_products_with_what_is_there():
    shapes = (2, 6, 6, 3), (3, 3, 3, 4)
    image, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    numbers = ("NHWC", "HWIO", "NHWC")

    def plain(image, kernel):
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def transposed(image, kernel):
        return lax.conv_transpose(image, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    assert Counter()(plain, image, kernel).loose == 2 * (2 * 6 * 6) * (3 * 3 * 3) * 4
    # four times as many pixels, of whose neighbours three in four are zeros
    assert Counter()(transposed, image, kernel).loose == 2 * (2 * 6 * 6) * (3 * 3 * 3) * 4


def test_factorisations_and_sorts():
    def solve(a, b):
        return lax.linalg.triangular_solve(lax.linalg.cholesky(a), b, left_side=True, lower=True)

    counts = Counter()(solve, SQUARE, jax.ShapeDtypeStruct((N, 3), jnp.float32))
    assert counts.factored == N**3 / 3 + N**2 * 3
    line = jax.ShapeDtypeStruct((16,), jnp.float32)
    assert Counter()(jnp.sort, line).elementwise == 16 * 4


def test_functions_roots_and_arithmetic():
    def profile(r):
        return jnp.exp(-r) * lax.rsqrt(1 + r) + jnp.log(r) / r

    counts = Counter()(profile, SQUARE)
    assert counts.functions == 2 * N**2  # exp, log
    assert counts.roots == 2 * N**2  # rsqrt, a quotient
    assert counts.elementwise == 4 * N**2  # -, 1 +, *, +
    assert Counter()(lambda r: jnp.sum(r), SQUARE).elementwise == N**2
    assert Counter()(lambda r: r**-3, SQUARE)[3:6] == (2 * N**2, 0, N**2)


def test_what_nobody_reads_does_not_count():
    def fn(a):
        del_me = dot(a, a)
        return a + 0 * del_me.shape[0]

    assert products(fn, SQUARE) == 0


def test_traffic_is_what_products_read_and_write_and_chains_read():
    array = 4 * N**2

    def fn(a, b):
        return jnp.exp(dot(a, b)) + 1

    assert Counter()(dot, SQUARE, SQUARE).traffic == 3 * array
    assert Counter()(fn, SQUARE, SQUARE).traffic == 5 * array  # the product read, the sum written
    assert Counter()(lambda a: jnp.sum(jnp.exp(a)), SQUARE).traffic == array + 4
    assert Counter()(lambda a: jnp.exp(a) * a, SQUARE).traffic == 2 * array  # a is read once
    after = Counter()(lambda a, b: dot(jnp.exp(a), b), SQUARE, SQUARE).traffic
    assert after == 5 * array  # a read, its exponential written and read, b read, all written
    assert Counter()(lambda a, b: dot(a.T, b), SQUARE, SQUARE).traffic == 3 * array


def test_an_unknown_primitive_is_one_line():
    with pytest.raises(NotImplementedError, match="counts: got the primitive fft"):
        Counter()(jnp.fft.fft, jax.ShapeDtypeStruct((4,), jnp.complex64))


def test_seconds_are_counts_over_rates():
    counts = Counts(60, 20, 40, 300, 50, 10, traffic=700, calls=3)
    device = roofline.Device("d", 100, 10, 1000, 10, 5, 100)
    terms = roofline.overlapped(counts, 200, device)
    assert terms == pytest.approx({"products": 3, "arithmetic": 0.3, "functions": 7, "memory": 2})
    assert roofline.in_turn(counts, 200, device) == pytest.approx(3 + 0.3 + 7 + 7)


@pytest.mark.parametrize(("task", "least", "most"), [("svgd", 0.7, 1.1), ("ksd", 0.9, 1.6)])
def test_products_are_near_the_floors(task, least, most):
    row = rows.find(f"{task}-1000x50")
    counts = roofline.count(row, roofline.program(row), "cuda").counts
    floor = getattr(floors, task)(row.n, row.d, floors.Rates(1.0, np.inf, np.inf))
    assert least < counts.products / floor < most  # a half, or three quarters, of the pairs
    if task == "svgd":
        assert counts.functions == pytest.approx(0.75 * row.n**2, rel=1e-4)  # three tiles of four


def test_a_row_is_printed(capsys, monkeypatch, tmp_path):
    page = tmp_path / "bench.md"
    page.write_text(
        "# Table\n\n"
        "| svgd-1000x50 kernelgrad (closed) | 2.5e+00 / 1.69 | |\n"
        "| svgd-1000x50 floor | 0.7 / 0.6 | |\n"
        "| mmd-5000x784 kernelgrad | memory > 8 GiB | |\n"
        "\n## Tests\n\n| drift-1000x50 kernelgrad | 193 / 144 | |\n"
    )
    assert roofline.measured(page) == {"svgd-1000x50": 2.5}
    flags = ["--rows=svgd-1000x50,import", f"--measured={page}"]
    monkeypatch.setattr("sys.argv", ["roofline", *flags])
    roofline.main()
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.count("svgd-1000x50") == second.count("svgd-1000x50") == 1
    assert "H200 ms" in first
    assert "import" not in first
    assert "| 2.5 " in second
