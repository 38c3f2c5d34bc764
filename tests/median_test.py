"""The streaming median against sorting, on data made to break it."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import memory
import numpy as np
import oracles
import pytest

from kernelgrad import _distances, median

median_squared_distance = jax.jit(median.median_squared_distance, static_argnames="axis_name")


@pytest.fixture
def small_tiles(monkeypatch):
    """Four rows of tiles for the 51 or 52 points below; traced anew, for tiles are static."""
    monkeypatch.setattr(median, "_TILE", 16)
    median_squared_distance.clear_cache()
    yield
    median_squared_distance.clear_cache()


def two_clusters(rng, n, d):
    centres = np.where(np.arange(n)[:, None] < n // 3, 0.0, 100.0)
    return centres + rng.normal(size=(n, d))


def duplicates(rng, n, d, share):
    x = rng.normal(size=(n, d)) + 1
    x[: int(share * n)] = x[0]
    return rng.permutation(x)


def copies_off_centre(rng, n, d):
    """Copies everywhere but at the nine points among which the centre is found."""
    x = np.tile(rng.normal(size=d), (n, 1))
    x[np.linspace(0, n - 1, 9).astype(int)] += 10 + rng.normal(size=(9, d))
    return x


DATA = {
    "normal": lambda rng, n, d: rng.normal(size=(n, d)),
    "uniform": lambda rng, n, d: rng.uniform(size=(n, d)),
    "offset 1e4": lambda rng, n, d: rng.normal(size=(n, d)) + 1e4,
    "1e-15": lambda rng, n, d: 1e-15 * rng.normal(size=(n, d)),
    "1e15": lambda rng, n, d: 1e15 * rng.normal(size=(n, d)),
    "cauchy": lambda rng, n, d: rng.standard_cauchy(size=(n, d)),
    "log-uniform": lambda rng, n, d: np.exp(rng.uniform(-10, 10, size=(n, d))),
    "one outlier": lambda rng, n, d: rng.normal(size=(n, d)) + 1e6 * np.eye(n)[:, :1],
    "sorted": lambda rng, n, d: np.arange(n)[:, None] * np.ones(d),
    "grid": lambda rng, n, d: rng.integers(0, 3, size=(n, d)),
    "one-hot": lambda rng, n, d: np.eye(d)[rng.integers(0, d, size=n)],
    "two clusters": two_clusters,
    "60 % copies": lambda rng, n, d: duplicates(rng, n, d, 0.6),
    "90 % copies": lambda rng, n, d: duplicates(rng, n, d, 0.9),
    "copies off centre": copies_off_centre,
    "constant": lambda rng, n, d: np.tile(rng.normal(size=d), (n, 1)),
    "zeros": lambda rng, n, d: np.zeros((n, d)),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(("n", "d"), [(51, 2), (52, 5)])  # 1275 and 1326 pairs: odd and even
def test_any_data_equals_sorting(n, d, rng, small_tiles):
    for name, draw in DATA.items():
        x = np.asarray(draw(rng, n, d), np.float32)
        expected = oracles.median_squared_distance(x)
        # the matmul form of a distance is exact to rounding in |x|^2, zero included
        typical = 0 if d <= 3 else np.median(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
        got = median_squared_distance(x)
        assert abs(got - expected) <= 1e-6 * (expected + typical), name
        if expected == 0:
            assert got == 0, name


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("n", [2, 3, 4, 5])  # 1, 3, 6, 10 pairs
def test_small_grids_are_exact(n, rng):
    """Ties at, below and above the middle; half-integers where the middle two differ."""
    halves = 0
    for _ in range(60):
        x = rng.integers(0, 4, size=(n, 2)).astype(np.float32)
        expected = oracles.median_squared_distance(x)
        assert median_squared_distance(x) == expected
        halves += expected % 1 == 0.5
    assert halves > 0 or n < 4


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("apart", [1.0, np.inf])
def test_what_follows_more_ties_than_are_taken_out_is_told_from_them(dim, apart, small_tiles):
    """Half of the pairs are up to 2^22, 324 of them there: the upper middle one is the next."""
    x = np.zeros((64, dim), np.float32)
    x[:18, 0] = 2048
    x[36:, :2] = (1, 2048) if apart == 1 else (0, 1e20)
    if apart == 1:
        assert oracles.median_squared_distance(x) == 2**22 + 0.5
    assert median_squared_distance(x) == 2**22 + apart / 2


@pytest.mark.thorough
def test_copies_are_at_distance_zero_to_rounding(rng):
    """Where the matmul form of a distance would leave about eps |x|^2 between most copies."""
    for _ in range(10):
        x = copies_off_centre(rng, 52, 64).astype(np.float32)
        assert oracles.median_squared_distance(x) == 0
        assert median_squared_distance(x) == 0


@pytest.mark.thorough
def test_two_middle_values_are_told_apart_in_any_draw(rng):
    """In 5 dimensions the passes round distances apart; both middle values must still count."""
    exact = jax.jit(median.median_squared_distance)
    for _ in range(200):
        x = rng.normal(size=(48, 5)).astype(np.float32)
        expected = oracles.median_squared_distance(x[:48])
        np.testing.assert_allclose(exact(x), expected, rtol=2e-6)


def passes_round_apart(sign, monkeypatch):
    """Lets products err by 2 eps of the norms, those of the last pass against the others."""
    signs, exact = [-sign], _distances.products

    def rounded(rows, cols):
        norms = rows.sq_norms[:, None] + cols.sq_norms[None, :]
        return exact(rows, cols) + signs[-1] * 2 * jnp.finfo(norms.dtype).eps * norms

    def around(pairs, low, high, last_pass=median._Pairs.around):
        signs.append(sign)
        return last_pass(pairs, low, high)

    monkeypatch.setattr(_distances, "products", rounded)
    monkeypatch.setattr(_distances, "far_apart", lambda *_: jnp.int32(0))
    monkeypatch.setattr(median._Pairs, "around", around)
    monkeypatch.setattr(median, "_TILE", 8)  # what is held is not searched,
    monkeypatch.setattr(median, "_FEW", 1)  # nor what the last pass takes out


@pytest.mark.thorough
@pytest.mark.parametrize("sign", [-1, 1])
def test_middle_values_among_large_norms_survive_passes_that_round_apart(sign, rng, monkeypatch):
    """The last pass rounds by eps |x|^2 against the others, far more than eps of the median."""
    passes_round_apart(sign, monkeypatch)
    x = 100 * np.ones((13, 5)) + rng.normal(size=(13, 5))
    x[[0, 1, 4, 6]] = 0.001 * rng.normal(size=(4, 5))  # the centre is among these
    x = x.astype(np.float32)
    ordered = np.sort(np.sum((x[:, None] - x[None]) ** 2, axis=2)[np.triu_indices(13, 1)])
    lower, upper = ordered[38:40]
    assert upper - lower > 0.3  # 8 eps of the largest norms are 0.1
    got = median.median_squared_distance(jnp.asarray(x))
    assert abs(got - (lower + upper) / 2) < 0.06


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("sign", [1, -1])
def test_middle_values_that_rounding_does_not_tell_apart_count_as_one(sign, rng, monkeypatch):
    """Not as the lower one and a third beyond both, which is in another mode."""
    passes_round_apart(sign, monkeypatch)
    ends = 100 + np.array(
        [[-2, 0, 0, 0, 0], [2, 0, 0, 0, 0], [0, -2.001, 0, 0, 0], [0, 2, 0, 0, 0]]
    )
    inner = 100 + 0.1 * rng.normal(size=(4, 5))
    x = np.concatenate([0.001 * rng.normal(size=(4, 5)), ends, inner])
    x = x[[0, 1, 4, 5, 2, 3, *range(6, 12)]].astype(np.float32)  # the centre is a small one
    ordered = np.sort(np.sum((x[:, None] - x[None]) ** 2, axis=2)[np.triu_indices(12, 1)])
    lower, upper, third = ordered[32:35]
    assert 0 < upper - lower < 0.01  # 2 eps of the largest norms are 0.02
    assert third > 1e4
    assert abs(median.median_squared_distance(jnp.asarray(x)) - lower) < 0.1


def test_float64(rng):
    with jax.enable_x64(True):
        for draw in (DATA["normal"], DATA["cauchy"], DATA["grid"]):
            x = draw(rng, 52, 5).astype(np.float64)
            got = median_squared_distance(x)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, oracles.median_squared_distance(x), rtol=1e-12)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_widened(dtype, rng):
    x = jnp.asarray(rng.normal(size=(12, 5)) + 3, dtype)
    got = median_squared_distance(x)
    assert got.dtype == np.float32
    wide = np.asarray(x.astype(jnp.float32))
    np.testing.assert_allclose(got, oracles.median_squared_distance(wide), rtol=1e-6)


def test_x_and_y_are_pooled(rng):
    x, y = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 12))
    pooled = oracles.median_squared_distance(np.concatenate([x, y + 2]))
    np.testing.assert_allclose(median_squared_distance(x, y + 2), pooled, rtol=1e-6)


def test_counts_carry_beyond_one_limb(rng):
    """1 124 250 pairs, more than 2^20, over nine tiles."""
    assert 1 << median._LIMB < 1500 * 1499 // 2
    x = rng.normal(size=(1500, 2)).astype(np.float32)
    first, second = np.triu_indices(1500, 1)
    sq_dist = np.sum((x[first].astype(np.float64) - x[second]) ** 2, axis=1)
    np.testing.assert_allclose(median_squared_distance(x), np.median(sq_dist), rtol=1e-6)


def test_not_finite_is_nan_and_overflow_is_infinite(rng):
    x = rng.normal(size=(12, 5)).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        x[3, 2] = bad
        assert np.isnan(median_squared_distance(x))
    x[3, 2] = 0
    assert median_squared_distance(x * np.float32(1e20)) == np.inf


def test_vmap_is_a_loop(rng):
    x = rng.normal(size=(3, 12, 5)).astype(np.float32)
    x[1, :10] = x[1, 0]
    batched = jax.jit(jax.vmap(median.median_squared_distance))(x)
    np.testing.assert_array_equal(batched, [median_squared_distance(row) for row in x])


@pytest.mark.parametrize("copies", [0, 10])
def test_two_devices_are_their_union(copies, rng, small_tiles):
    """26 points a device, in tiles of 16: each counts the pairs that its own points open.

    Their 1326 pairs are an even number: the two middle ones may be on two devices.
    """
    x = rng.normal(size=(2, 13, 5)).astype(np.float32)
    y = rng.normal(size=(2, 13, 5)).astype(np.float32)
    x[:, :copies] = y[:, :copies] = 1.5
    on_two = jax.pmap(
        functools.partial(median.median_squared_distance, axis_name="devices"),
        axis_name="devices",
    )(x, y)
    union = np.concatenate([x.reshape(26, 5), y.reshape(26, 5)])
    expected = oracles.median_squared_distance(union)
    np.testing.assert_allclose(on_two, [expected, expected], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------- order statistics


def limbs(count):
    size = 1 << median._LIMB
    return jnp.int32(count // size), jnp.int32(count % size)


def test_limbs_compare_and_carry_like_integers(rng):
    size = 1 << median._LIMB
    edges = [0, 1, size - 1, size, size + 1, 2**31 - 1, 2**31, 2**32 + 7, 2**45 - 1, 2**50]
    numbers = edges + [int(number) for number in rng.integers(0, 2**50, size=20)]
    high, low = (np.array([limbs(a)[part] for a in numbers]) for part in (0, 1))
    for rank in numbers:
        got = median._at_least((high, low), rank)
        np.testing.assert_array_equal(got, [a >= rank for a in numbers])
    tile = 512 * 512
    more, rest = median._carried(high, low + tile)
    assert [int(h) * size + int(l) for h, l in zip(more, rest, strict=True)] == [
        a + tile for a in numbers
    ]
    assert np.max(rest) < size
    np.testing.assert_allclose(
        median._approximate((high, low), np.dtype(np.float32)), numbers, rtol=1e-6
    )


class CountedPairs:
    """Stands in for median._Pairs: pairs whose counts follow from a distribution function."""

    def __init__(self, count_upto, points):
        some, _ = _distances.prepare(points[:9])
        self.count_upto, self.passes = count_upto, 0
        self.points, self.axis_name = some, None
        self.sampled = jnp.sort(_distances.direct(some, some).ravel())

    quantiles = median._Pairs.quantiles

    def count(self, pivots):
        self.passes += 1
        counts = [limbs(self.count_upto(Fraction(float(pivot)))) for pivot in pivots]
        return tuple(jnp.stack(part) for part in zip(*counts, strict=True))

    def around(self, low, high):
        """By halving the bits of floats between the ends of the bracket, or 0 and infinity."""
        self.passes += 1
        infinite = int(np.float32(np.inf).view(np.int32))

        def upto(bits):
            value = np.int32(min(bits, infinite - 1)).view(np.float32)
            return 0 if bits < 0 else self.count_upto(Fraction(float(value)))

        def smallest(count, low=-1, high=infinite):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if upto(middle) >= count else (middle, high)
            return np.int32(high).view(np.float32)

        low, high = int(low), int(high)
        below, end = upto(low), upto(high)
        taken = np.full(median._FEW, np.inf, np.float32)
        inside = min(end - below, median._FEW + 1)
        if inside <= median._FEW:
            taken[:inside] = [smallest(below + i, low, high) for i in range(1, inside + 1)]
        over = jnp.float32(smallest(end + 1))
        found, end = (jnp.int32(inside), jnp.asarray(taken)), tuple(limbs(end))
        return median._Around(tuple(limbs(below)), *found, end, over, end, over)


@pytest.mark.thorough
@pytest.mark.parametrize("num_points", [3, 70_000, 100_000, 10_000_000])
def test_ranks_beyond_int32_are_exact(num_points, rng):
    """Distances uniform on (0, 1000], up to 5e13 of them: the answer brackets the rank."""
    num_pairs = num_points * (num_points - 1) // 2

    def count_upto(pivot):
        return max(0, min(num_pairs, num_pairs * pivot.numerator // (1000 * pivot.denominator)))

    points = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    for rank in (1, (num_pairs + 1) // 2, num_pairs):
        with jax.disable_jit():
            pairs = CountedPairs(count_upto, points)
            got, _ = median._next_to_each_other(pairs, num_pairs, rank)
        below = np.nextafter(np.float32(got), np.float32(0))
        assert count_upto(Fraction(float(below))) < rank <= count_upto(Fraction(float(got)))


def test_a_million_points_can_be_traced_and_need_no_array_of_pairs():
    x = jax.ShapeDtypeStruct((1_000_000, 4), jnp.float32)
    largest = memory.largest_buffer(median.median_squared_distance, x)
    assert largest <= 2 * 1_000_000 * 4


@pytest.mark.thorough
@memory.needs_proc
def test_10000_points_take_less_than_a_tenth_of_their_gram():
    gram = 4 * 10_000**2 / 2**20
    peak = memory.peak_megabytes("""
arguments = (jnp.asarray(rng.normal(size=(10_000, 4)), jnp.float32),)
fn = median.median_squared_distance
""")
    assert peak < gram / 10


ADVERSARIES = {
    "tiny and huge": [1e-38] * 500 + [3e38] * 500,
    "log-uniform": list(np.logspace(-37, 38, 1000)),
    "steps": sorted(10.0 ** (k % 70 - 35) for k in range(1000)),
    "constant": [3.0] * 1000,
    "zeros": [0.0] * 1000,
    "lonely": [0.0] * 499 + [1e-20] + [7.0] * 500,
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_data_takes_more_passes_than_promised(name, rng):
    values = np.asarray(ADVERSARIES[name], np.float32).astype(np.float64)
    points = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    for rank in (1, 500, 501):
        pairs = CountedPairs(lambda pivot: np.searchsorted(values, float(pivot), "right"), points)
        with jax.disable_jit():
            got, above = median._next_to_each_other(pairs, len(values), rank)
        assert got == values[rank - 1]
        assert above == [*values, np.inf][rank]
        assert pairs.passes <= 17


def test_smooth_data_takes_few_passes(rng):
    x = rng.normal(size=(1000, 10))
    norms, pairs = np.sum(x**2, axis=1), np.triu_indices(1000, 1)
    values = np.sort((norms[:, None] + norms - 2 * x @ x.T)[pairs].astype(np.float32))
    pairs = CountedPairs(
        lambda pivot: np.searchsorted(values, float(pivot), "right"), jnp.asarray(x, jnp.float32)
    )
    with jax.disable_jit():
        got, _ = median._next_to_each_other(pairs, len(values), len(values) // 2)
    assert got == values[len(values) // 2 - 1]
    assert pairs.passes <= 5


@pytest.mark.parametrize("fault", ["counts otherwise", "cannot tell"])
def test_a_last_pass_that_finds_nothing_sends_the_search_on(fault, rng):
    """It looks where all distances are half as large, or has three of them in one place."""
    values = np.sort(rng.uniform(1, 2, 1000).astype(np.float32))
    points = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    pairs = CountedPairs(lambda pivot: np.searchsorted(values, float(pivot), "right"), points)
    right, looks = pairs.around, []

    def around(low, high):
        looks.append(int(high - low))
        if len(looks) > 1:
            return right(low, high)
        if fault == "cannot tell":
            return right(low, high)._replace(inside=jnp.int32(median._FEW + 1))
        return right(low - (1 << 23), high - (1 << 23))

    pairs.around = around
    with jax.disable_jit():
        got = median._next_to_each_other(pairs, len(values), 500)
    assert got == tuple(values[499:501])
    assert looks[0] > 1
    assert looks[1:] == [1]


@pytest.mark.parametrize("draw", ["normal", "grid", "sorted", "60 % copies"])
def test_a_last_pass_takes_out_what_is_in_a_bracket(draw, rng, small_tiles):
    """Against sorting: counts, the distances themselves and those beyond, or that it cannot."""
    x = jnp.asarray(np.round(100 * DATA[draw](rng, 52, 2)), jnp.float32)  # of exact distances
    sq_dist = np.sort(np.sum((x[:, None] - x[None]) ** 2, axis=2)[np.triu_indices(52, 1)])
    points = _distances.moved(x, x[:1])
    sampled = jnp.sort(_distances.direct(points, points).ravel())
    pairs = median._Pairs(points, x[:1], None, sampled)
    around, told = jax.jit(pairs.around), 0
    for start, stop in ((0, 1), (600, 640), (700, 702), (1300, 1325)):
        low, high = (jnp.float32(sq_dist[i]).view(jnp.int32) for i in (start, stop))
        found = around(low, high)
        below, upto = (int(np.searchsorted(sq_dist, sq_dist[i], "right")) for i in (start, stop))
        assert int(found.below[1]) == below
        assert int(found.upto[1]) == int(found.near[1]) == upto
        beyond = sq_dist[upto] if upto < len(sq_dist) else np.inf
        assert found.over == beyond
        assert found.apart == beyond
        if int(found.inside) <= median._FEW:
            told += 1
            assert int(found.inside) == upto - below
            np.testing.assert_array_equal(found.taken[: upto - below], sq_dist[below:upto])
            assert np.all(np.isinf(found.taken[upto - below :]))
    assert told >= 1


# -------------------------------------------------------------------------------------- errors


X = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:1],), "x: got 1 point; expected at least 2"),
        ((X[:0],), r"x: got shape \(0, 2\)"),
        ((X[:, :0],), r"x: got shape \(3, 0\)"),
        ((X[0],), r"x: got shape \(2,\)"),
        ((X.astype(np.int32),), "x: got dtype int32; expected floating"),
        ((X, X[:, :1]), r"y: got shape \(3, 1\)"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        median.median_squared_distance(*arguments)


@pytest.mark.parametrize("n", [6, 7])  # an odd number of pairs, and even ones
def test_held_distances_have_the_median_that_is_searched(n, rng, monkeypatch):
    x = jnp.asarray(np.round(rng.normal(size=(n, 5)), 1), jnp.float32)
    held = median.median_squared_distance(x)
    monkeypatch.setattr(median, "_TILE", 1)
    assert held == median.median_squared_distance(x)
