"""What a kernel may have besides its profile, and what stands in for it where it has not."""

from typing import Any

from kernelgrad.types import Array, Kernel


def is_feature_kernel(kernel: Kernel) -> bool:
    """Returns whether the kernel measures distances between features.

    Args:
      kernel: radial, or with a method `features` and an attribute `base`.
    """
    return hasattr(kernel, "features")


def embed(kernel: Kernel, x: Array) -> Array:
    """Returns the points between which the kernel measures distances: features, or x itself.

    Args:
      kernel: radial, or with a method `features`.
      x: points; shape (n, d).

    Returns:
      Points, shape (n, l), or x.
    """
    return kernel.features(x) if is_feature_kernel(kernel) else x  # type: ignore[attr-defined]


def radial(kernel: Kernel) -> Kernel:
    """Returns the radial kernel between embedded points.

    Args:
      kernel: radial, or with a method `features` and an attribute `base`.

    Returns:
      The base of a feature kernel, or the kernel itself.
    """
    return kernel.base if is_feature_kernel(kernel) else kernel  # type: ignore[attr-defined]


def coordinate_lengthscales(kernel: Kernel) -> Array | None:
    """Returns the lengthscales over which the features are the coordinates; None for most kernels.

    Args:
      kernel: radial, or of features, with or without an attribute `coordinate_lengthscales`.
    """
    return getattr(kernel, "coordinate_lengthscales", None)


def parts(kernel: Any) -> tuple[Kernel, ...]:
    """Returns the kernels whose sum it is, each of one distance; itself for most kernels.

    Args:
      kernel: radial, with features, or with an attribute `parts`.
    """
    return getattr(kernel, "parts", (kernel,))


def no_feature_kernel(kernel: Kernel) -> str:
    """Returns the error of a feature kernel where one of the particles themselves is expected.

    Args:
      kernel: of features, with or without an attribute `coordinate_lengthscales`.
    """
    if coordinate_lengthscales(kernel) is None:
        return "kernel: got a feature kernel; expected a radial one, such as imq_mixture"
    return (
        "kernel: got a per_coordinate kernel; expected a radial one. Rescale instead: its base, "
        "particles / lengthscales, scores * lengthscales"
    )


def log_slope(kernel: Kernel) -> Array | None:
    """Returns (log k)' where it is one number for all distances; None for most kernels.

    Args:
      kernel: radial, with or without a method `log_slope`.
    """
    return kernel.log_slope() if hasattr(kernel, "log_slope") else None


def log_profile(kernel: Kernel, sq_dist: Array) -> Array | None:
    """Returns log k at squared distances, by way of no k that underflows; None where unknown.

    Args:
      kernel: radial, with or without a method `log_profile`.
      sq_dist: squared distances; any shape.
    """
    return kernel.log_profile(sq_dist) if hasattr(kernel, "log_profile") else None


def smooth_at_zero(kernel: Kernel) -> bool:
    """Returns whether k is differentiable where its points coincide; it is unless it says no.

    Args:
      kernel: radial, with or without an attribute `smooth_at_zero`.
    """
    return getattr(kernel, "smooth_at_zero", True)


def positive_at_zero(kernel: Kernel) -> bool:
    """Returns whether k(0) > 0; it is unless the kernel says no.

    Args:
      kernel: radial or of features, with or without an attribute `positive_at_zero`.
    """
    return getattr(radial(kernel), "positive_at_zero", True)


def check_positive(kernel: Kernel, name: str = "kernel") -> None:
    """Raises ValueError for a kernel that says that k(0) > 0 does not hold.

    Args:
      kernel: radial or of features.
      name: the argument's name.
    """
    if not positive_at_zero(kernel):
        kind = type(radial(kernel)).__name__.lower()
        raise ValueError(
            f"{name}: got {kind}, whose k(0) is not positive; expected one "
            "with k(0) > 0, such as imq_mixture"
        )
