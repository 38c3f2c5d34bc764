"""Slow float64 statements of the papers' formulas, sharing no code with the package."""

import math

import jax.numpy as jnp
import numpy as np
import scipy.linalg

# k(r) of one component with lengthscale l, as a function of the distance r.
RADIAL = {
    "rbf_mixture": lambda r, l: math.exp(-(r**2) / (2 * l**2)),
    "imq_mixture": lambda r, l: 1 / math.sqrt(1 + r**2 / l**2),
    "rational_quadratic": lambda r, l: 1 / (1 + r**2 / (2 * l**2)),  # alpha = 1
    "matern32": lambda r, l: (1 + math.sqrt(3) * r / l) * math.exp(-math.sqrt(3) * r / l),
    "matern52": lambda r, l: (
        (1 + math.sqrt(5) * r / l + 5 * r**2 / (3 * l**2)) * math.exp(-math.sqrt(5) * r / l)
    ),
    "matern72": lambda r, l: (
        (1 + math.sqrt(7) * r / l + 14 * r**2 / (5 * l**2) + 7 * math.sqrt(7) * r**3 / (15 * l**3))
        * math.exp(-math.sqrt(7) * r / l)
    ),
    "laplace": lambda r, l: math.exp(-r / l),
}

# dk/dr of one component; 0 at r = 0 by symmetry.
RADIAL_SLOPE = {
    "rbf_mixture": lambda r, l: -r / l**2 * math.exp(-(r**2) / (2 * l**2)),
    "imq_mixture": lambda r, l: -r / l**2 / (1 + r**2 / l**2) ** 1.5,
    "rational_quadratic": lambda r, l: -r / l**2 / (1 + r**2 / (2 * l**2)) ** 2,
    "matern32": lambda r, l: -3 * r / l**2 * math.exp(-math.sqrt(3) * r / l),
    "matern52": lambda r, l: (
        -5 * r / (3 * l**2) * (1 + math.sqrt(5) * r / l) * math.exp(-math.sqrt(5) * r / l)
    ),
    "matern72": lambda r, l: (
        -7
        * r
        / (5 * l**2)
        * (1 + math.sqrt(7) * r / l + 7 * r**2 / (3 * l**2))
        * math.exp(-math.sqrt(7) * r / l)
    ),
    "laplace": lambda r, l: -math.exp(-r / l) / l if r > 0 else 0.0,
}

# The same as functions of u = r^2 / l^2, for autodiff; singular or not, as printed.
PROFILES = {
    "rbf_mixture": lambda u: jnp.exp(-u / 2),
    "imq_mixture": lambda u: 1 / jnp.sqrt(1 + u),
    "rational_quadratic": lambda u: 1 / (1 + u / 2),
    "matern32": lambda u: (1 + jnp.sqrt(3 * u)) * jnp.exp(-jnp.sqrt(3 * u)),
    "matern52": lambda u: (1 + jnp.sqrt(5 * u) + 5 * u / 3) * jnp.exp(-jnp.sqrt(5 * u)),
    "matern72": lambda u: (
        (1 + jnp.sqrt(7 * u) + 14 * u / 5 + 7 * u * jnp.sqrt(7 * u) / 15)
        * jnp.exp(-jnp.sqrt(7 * u))
    ),
    "laplace": lambda u: jnp.exp(-jnp.sqrt(u)),
}


def kernel(family, x, y, lengthscales, weights=None):
    """k(x, y) for two points."""
    lengthscales = np.atleast_1d(np.asarray(lengthscales, np.float64))
    weights = np.ones(len(lengthscales)) if weights is None else np.asarray(weights, np.float64)
    r = math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)))
    return sum(w * RADIAL[family](r, l) for w, l in zip(weights, lengthscales, strict=True))


def kernel_gradient(family, x, y, lengthscales, weights=None):
    """grad_y k(x, y) for two points: dk/dr times the unit vector from x to y."""
    lengthscales = np.atleast_1d(np.asarray(lengthscales, np.float64))
    weights = np.ones(len(lengthscales)) if weights is None else np.asarray(weights, np.float64)
    step = np.asarray(y, np.float64) - np.asarray(x, np.float64)
    r = math.sqrt(float(np.sum(step**2)))
    if r == 0:
        return np.zeros_like(step)
    slope = sum(w * RADIAL_SLOPE[family](r, l) for w, l in zip(weights, lengthscales, strict=True))
    return slope * step / r


def gram(family, x, y, lengthscales, weights=None):
    """K_ij = k(x_i, y_j)."""
    return np.array([[kernel(family, a, b, lengthscales, weights) for b in y] for a in x])


def gradient_sum(family, x, y, lengthscales, sum_weights=None, weights=None):
    """N_i = sum_j w_j grad_{y_j} k(x_i, y_j), the bracket <grad, K> of paper 000 eq. (2)."""
    sum_weights = np.ones(len(y)) if sum_weights is None else np.asarray(sum_weights, np.float64)
    return np.array(
        [
            sum(
                w * kernel_gradient(family, a, b, lengthscales, weights)
                for w, b in zip(sum_weights, y, strict=True)
            )
            for a in x
        ]
    )


def fast_gram(family, x, y, lengthscales, weights=None):
    """gram, without the double loop, from all coordinate differences."""
    return _all_pairs(RADIAL[family], x, y, lengthscales, weights)[2]


def fast_gradient_sum(family, x, y, lengthscales, sum_weights=None, weights=None):
    """gradient_sum, without the double loop, from all coordinate differences."""
    sum_weights = np.ones(len(y)) if sum_weights is None else np.asarray(sum_weights, np.float64)
    distances, steps, slopes = _all_pairs(RADIAL_SLOPE[family], x, y, lengthscales, weights)
    over_r = np.divide(slopes, distances, out=np.zeros_like(slopes), where=distances > 0)
    return np.einsum("ij,ijk,j->ik", over_r, steps, sum_weights)


def _all_pairs(radial, x, y, lengthscales, weights):
    """Distances, steps y_j - x_i and the weighted sum of radial(r_ij, l_c)."""
    lengthscales = np.atleast_1d(np.asarray(lengthscales, np.float64))
    weights = np.ones(len(lengthscales)) if weights is None else np.asarray(weights, np.float64)
    steps = np.asarray(y, np.float64)[None] - np.asarray(x, np.float64)[:, None]
    distances = np.sqrt(np.sum(steps**2, axis=2))
    scalar = np.vectorize(radial, otypes=[np.float64])
    parts = sum(w * scalar(distances, l) for w, l in zip(weights, lengthscales, strict=True))
    return distances, steps, parts


def median_squared_distance(points):
    """Median over pairs i < j by sorting all of them."""
    points = np.asarray(points, np.float64)
    pairs = [
        float(np.sum((points[i] - points[j]) ** 2))
        for i in range(len(points))
        for j in range(i + 1, len(points))
    ]
    return float(np.median(pairs))


def mmd_v(family, x, y, lengthscales, weights=None):
    """MMD^2, V-statistic: mean K_xx + mean K_yy - 2 mean K_xy."""
    return (
        gram(family, x, x, lengthscales, weights).mean()
        + gram(family, y, y, lengthscales, weights).mean()
        - 2 * gram(family, x, y, lengthscales, weights).mean()
    )


def mmd_u(family, x, y, lengthscales, weights=None):
    """MMD^2, U-statistic: the two within-sample means run over i != j."""
    k_xx = gram(family, x, x, lengthscales, weights)
    k_yy = gram(family, y, y, lengthscales, weights)
    n, m = len(x), len(y)
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return within_x + within_y - 2 * gram(family, x, y, lengthscales, weights).mean()


def test_power(kernel_fn, x, y):
    """Liu et al. 2020, eqs. (4) and (5), from H_ij, of any k(a, b): (J, MMD^2, variance)."""
    n = len(x)
    h = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            h[i, j] = kernel_fn(x[i], x[j]) + kernel_fn(y[i], y[j])
            h[i, j] -= kernel_fn(x[i], y[j]) + kernel_fn(x[j], y[i])
    mmd_u = sum(h[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    squares = sum(h[i].sum() ** 2 for i in range(n))
    variance = 4 / n**3 * squares - 4 / n**4 * h.sum() ** 2
    variance += 1e-8 * kernel_fn(x[0], x[0]) ** 2
    return mmd_u / math.sqrt(variance), mmd_u, variance


test_power.__test__ = False


def stein_score(family, samples, lengthscales, ridge, weights=None):
    """Paper 000 eq. (2): G = -(K + eta I)^-1 <grad, K>."""
    k = gram(family, samples, samples, lengthscales, weights)
    n = gradient_sum(family, samples, samples, lengthscales, weights=weights)
    return -np.linalg.solve(k + ridge * np.eye(len(samples)), n)


def stein_score_at(family, query, samples, lengthscales, ridge, weights=None):
    """Paper 000 eq. (3) by its definition: the last row of eq. (2) on samples with one query."""
    everyone = np.concatenate([np.asarray(samples, np.float64), np.asarray(query)[None]])
    return stein_score(family, everyone, lengthscales, ridge, weights)[-1]


def inception_score(probs):
    """exp of the mean KL from rows of probabilities (n, c) to their mean."""
    n, c = probs.shape
    marginal = [sum(float(p[j]) for p in probs) / n for j in range(c)]
    total = 0.0
    for p in probs:
        for j in range(c):
            if p[j] > 0:
                total += float(p[j]) * math.log(float(p[j]) / marginal[j])
    return math.exp(total / n)


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians."""
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    product_root = np.real(scipy.linalg.sqrtm(cov1 @ cov2))
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * product_root)


def kernel_inception_distance(x, y):
    """MMD^2, U-statistic, under the kernel (x . y / d + 1)^3."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def k(a, b):
        return (sum(s * t for s, t in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def precision_recall(real, fake, k):
    """Precision, recall, density and coverage from balls to the k-th nearest neighbour."""
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)

    def radius(points, i):
        others = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, j) for j in range(len(fake))]
    inside_real = np.array(
        [
            [np.linalg.norm(f - r) < radius for r, radius in zip(real, real_radii, strict=True)]
            for f in fake
        ]
    )
    inside_fake = np.array(
        [
            [np.linalg.norm(r - f) < radius for f, radius in zip(fake, fake_radii, strict=True)]
            for r in real
        ]
    )
    return (
        inside_real.any(axis=1).mean(),
        inside_fake.any(axis=1).mean(),
        inside_real.sum(axis=1).mean() / k,
        inside_real.any(axis=0).mean(),
    )


def drifting_field(x, y, temperatures):
    """Algorithm 2 of Deng et al.: two softmaxes, their geometric mean, cross-weighted sums."""
    n, m, everyone = len(x), len(y), [*x, *y]
    distance = np.array([[np.linalg.norm(a - b) for b in everyone] for a in x])
    others = [[j for j in range(n + m) if j != i] for i in range(n)]
    mean = np.mean([distance[i, j] for i in range(n) for j in others[i]])
    total = np.zeros_like(x)
    for temperature in temperatures:
        k = np.zeros((n, n + m))
        for i in range(n):
            k[i, others[i]] = np.exp(-distance[i, others[i]] / (temperature * mean))
        a = np.sqrt(k / k.sum(axis=1, keepdims=True) * k / k.sum(axis=0, keepdims=True))
        field = np.zeros_like(x)
        for i in range(n):
            for j in range(m):
                for l in range(n):
                    field[i] += a[i, n + j] * a[i, l] * (y[j] - x[l])
        total += field / np.sqrt(np.mean(field**2))
    return total


def energy_distance(x, y, exponent=1.0):
    """Value and gradient in x, from every pair; the gradient of two points in one place is 0."""
    n, m = len(x), len(y)
    value, gradient = 0.0, np.zeros_like(x)
    for points, others, weight in ((x, y, 2 / (n * m)), (x, x, -1 / n**2), (y, y, -1 / m**2)):
        for i, a in enumerate(points):
            r = np.linalg.norm(a - others, axis=1)
            value += weight * np.sum(r**exponent)
            if points is x:
                both = 1 if others is y else 2
                slope = exponent * np.where(r > 0, r, np.inf) ** (exponent - 2)
                gradient[i] += both * weight * slope @ (a - others)
    return value, gradient


def moments_z(samples, covariance):
    """z-scores of a Gaussian's moments up to order 4, by their exact standard errors; printed.

    In turn: means, variances, fourth moments and covariances of the whitened samples (n, d).
    """
    white = np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(samples, np.float64).T)
    n = white.shape[1]
    pairs = [white[a] * white[b] for a in range(len(white)) for b in range(a)]
    z = np.concatenate(
        [
            white.mean(1) * np.sqrt(n),
            (white**2 - 1).mean(1) * np.sqrt(n / 2),
            (white**4 - 3).mean(1) * np.sqrt(n / 96),
            np.array([np.mean(pair) for pair in pairs]) * np.sqrt(n),
        ]
    )
    print(f"z of {len(z)} moments of {n} samples: largest {np.abs(z).max():.2f}")
    return z
