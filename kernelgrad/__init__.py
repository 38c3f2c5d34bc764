"""Kernel methods for generative modelling in JAX.

A method says, for each generated sample, which way it should move; the chain rule carries that
direction back through the generator. The rooms of the house by storey, each of which stands on
those above it::

    types             names for what crosses the borders of modules: arrays, functions, kernels

    pairwise          the engine: sums over all pairs of points, on one device or many
    median            the exact median of all pairwise squared distances
    kernels           radial families, deep kernels, rules for lengthscales
    selection         hyperparameters, by held-out losses of ratios and scores

    score             the score of a density from samples, by Stein's identity
    score_peers       the same by other means: spectral, nu-method, kernel density
    mmd               maximum mean discrepancy, its two-sample test, coresets
    ksd               kernelized Stein discrepancy, its test of fit, thinning
    fssd              finite-set Stein discrepancy: a test of fit in linear time
    svgd              Stein variational gradient descent
    ratio             density ratios from samples of both densities
    drift             the drifting field: normalised attraction to data less repulsion of samples
    energy            the energy distance along lines, by sorting
    kmm               kernel mean matching: weights of one sample for another
    kale              the KALE bound on a divergence, and its log-normaliser
    adversarial       losses, bounds and penalties of adversarial training
    noise             instance noise, and the best discriminator under it
    certificate       how far apart laws can be that are hard to tell apart
    hmc               Hamiltonian Monte Carlo
    langevin          Langevin steps: ULA, MALA, underdamped
    metrics           how good samples are
    feature_maps      kernels of finite rank: random waves, landmarks

    latent            a density seen through a generator
    pullback          from a direction in sample space to an update of parameters
    chains            the Stein test of Markov chains
    kale_rkhs         KALE over an RKHS: between KL and MMD, by a convex fit
    kernel_learning   kernels learned by the power of their two-sample test
    low_rank          sums over pairs, MMD, KSD, SVGD in linear time, with their error
    low_rank_fits     scores and density ratios in linear time, with a bound of their error
    objectives        directions, as a training step takes them, and their algebra
    two_player        directions that follow a critic, which learns beside the generator
    critic            the second player: its network, its state, its steps
    steingan          a deep energy model whose generator follows SVGD

    train             the training step, the ways to feed it, one device or many

Each is imported when first asked for, ``kernelgrad.mmd`` too, so that ``import kernelgrad`` alone
loads no JAX.
"""

import importlib
import pkgutil
from types import ModuleType

__version__ = "1.0.0"


def __getattr__(name: str) -> ModuleType:
    """Returns the module of that name, imported now."""
    if not name.startswith("_") and name in __dir__():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names of the public modules."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return ["__version__", *(name for name in names if not name.startswith("_"))]
