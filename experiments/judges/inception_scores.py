"""FID, KID and inception score as others publish them, by the public weights of Inception.

The weights are those that pytorch-fid and torch-fidelity use. They are not fetched: whoever has the
file names it, and it is known by its SHA-256.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from experiments.data.dataset import Dataset
from experiments.judges import image_metrics, torch_files
from experiments.judges.image_metrics import Scores
from experiments.networks import inception
from experiments.run import files
from experiments.run.errors import DataError, UsageError, reason
from kernelgrad import metrics
from kernelgrad.types import Array, PyTree

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
METRICS = ("fid", "kid", "inception_v3_score")

_NAMES = "pt_inception- or weights-inception-2015-12-05-6726825d.pth"
_MOST_BYTES = 2**28
_AT_ONCE = 50  # images, as torch-fidelity's batches


def load(path: str, sha256: str = SHA256) -> PyTree:
    """Returns the variables of :class:`~experiments.networks.inception.Inception`.

    Args:
      path: the file of pytorch-fid or torch-fidelity.
      sha256: what it has to have.

    Raises:
      UsageError: no such file, or another one.
    """
    try:
        content = files.read(Path(path), _MOST_BYTES, follow=True)
    except OSError as error:
        raise UsageError(
            f"inception_weights: got {path} ({reason(error)}); expected the file {_NAMES} of "
            "pytorch-fid or torch-fidelity"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UsageError(
            f"inception_weights: got {path} of SHA-256 {found[:16]}...; expected {sha256[:16]}..., "
            f"that of {_NAMES}. Fetch it again"
        )
    return variables(torch_files.state_dict(content))


def check(dataset: Dataset) -> None:
    """Raises DataError where the images are neither grey nor of three colours."""
    if dataset.sample_shape[-1] not in (1, 3):
        raise DataError(
            f"dataset: got {dataset.name}, of {dataset.sample_shape[-1]} channels; Inception "
            "expects 1 or 3"
        )


def variables(tensors: dict[str, np.ndarray]) -> PyTree:
    """Returns the network's variables, from a checkpoint's tensors by their names.

    Raises:
      ValueError: tensors of other names or shapes than those of the network.
    """
    found = {}
    for name, tensor in tensors.items():
        path = tuple(name.split("."))
        if place := _PLACES.get(path[-2:]) or _PLACES.get(path[-1:]):
            collection, leaf, axes = place
            found[collection, *path[:-1], leaf] = jnp.asarray(tensor.transpose(axes))
    images = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    expected = jax.eval_shape(inception.Inception().init, jax.random.key(0), images)
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(expected).items()}
    if {path: leaf.shape for path, leaf in found.items()} != shapes:
        raise ValueError("got tensors of other names or shapes; expected those of Inception-v3")
    return traverse_util.unflatten_dict(found)


# a tensor's last names: the collection, the leaf and its axes there
_PLACES: dict[tuple[str, ...], tuple[str, str, tuple[int, ...]]] = {
    ("conv", "weight"): ("params", "kernel", (2, 3, 1, 0)),
    ("fc", "weight"): ("params", "kernel", (1, 0)),
    ("bn", "weight"): ("params", "scale", (0,)),
    ("bn", "bias"): ("params", "bias", (0,)),
    ("running_mean",): ("batch_stats", "mean", (0,)),
    ("running_var",): ("batch_stats", "var", (0,)),
}


def scores(dataset: Dataset, weights: PyTree, num_images: int) -> Callable[[Array], Scores]:
    """Returns the published scores of images in [0, 1] against the test images.

    Args:
      dataset: images; at most the first `num_images` test images are the reference.
      weights: the network's variables.
      num_images: as many as will be scored, for the FID falls with their number.

    Returns:
      Function of images (n, h, w, c) to ``fid``, ``kid`` (of all pairs, of which torch-fidelity's
      is the mean over random subsets) and ``inception_v3_score``, of all images at once, which is
      above the mean over tenths that torch-fidelity takes.
    """
    real, _ = outputs(weights, image_metrics.as_images(dataset.test[:num_images]))

    def of(samples: Array) -> Scores:
        fake, logits = outputs(weights, samples)
        return {
            "fid": fid(fake, real),
            "kid": float(metrics.kernel_inception_distance(real, fake)),
            "inception_v3_score": float(metrics.inception_score(jax.nn.softmax(logits))),
        }

    return of


def fid(fake: Array, real: Array) -> float:
    """Returns the Frechet distance between features (n, l) and (m, l), in float64 on the CPU.

    With fewer images than features a covariance is singular, of which float32 keeps four digits.
    """
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        clouds = (np.asarray(features, np.float64) for features in (fake, real))
        return float(image_metrics.frechet_between(*(jnp.asarray(cloud) for cloud in clouds)))


def outputs(weights: PyTree, images: Array) -> tuple[Array, Array]:
    """Returns features (n, 2048) and logits (n, 1008), some images at a time.

    Args:
      weights: the network's variables.
      images: (n, h, w, c) in [0, 1], c = 1 or 3. They are rounded to 256 levels and resized as the
        graph of the published scores does.
    """
    count = len(images)
    parts = []
    for start in tqdm(range(0, count, _AT_ONCE), desc="Inception", unit="batch"):
        some = images[start : start + _AT_ONCE]
        padded = jnp.pad(some, ((0, _AT_ONCE - len(some)), (0, 0), (0, 0), (0, 0)))
        parts.append(jax.device_get(_of_some(weights, padded)))
    features, logits = (np.concatenate(each)[:count] for each in zip(*parts, strict=True))
    return jnp.asarray(features), jnp.asarray(logits)


@jax.jit
def _of_some(weights: PyTree, images: Array) -> tuple[Array, Array]:
    levels = jnp.rint(255 * images)
    coloured = jnp.broadcast_to(levels, (*levels.shape[:3], 3))
    return inception.Inception().apply(weights, resized(coloured))


def resized(images: Array) -> Array:
    """Returns images (n, h, w, c) at the network's size, bilinear as TensorFlow 1 has it.

    A pixel's place is i h / 299: neither corners nor centres coincide.
    """
    highest = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rows, columns = (_weights(side) for side in images.shape[1:3])
    return highest("ah,nhwc,bw->nabc", rows, images, columns)


def _weights(side: int) -> Array:
    """Returns the matrix (299, side) of a bilinear resizing along one axis."""
    place = np.arange(inception.SIDE, dtype=np.float32) * np.float32(side / inception.SIDE)
    low = np.floor(place).astype(int)
    share = place - low
    weights = np.zeros((inception.SIDE, side), np.float32)
    every = np.arange(inception.SIDE)
    np.add.at(weights, (every, low), 1 - share)
    np.add.at(weights, (every, np.minimum(low + 1, side - 1)), share)
    return jnp.asarray(weights)
