"""Samples of a run as files that other people's metrics read: one .npz, or a folder of PNGs."""

import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.run import files
from experiments.run.errors import UsageError
from experiments.training.trained import Trained
from kernelgrad.types import Key

FORMATS = ("npz", "png")
_FOLDER = "exported"
_DRAWABLE = (1, 3, 4)  # channels of a PNG: grey, RGB, RGBA


def write(workdir: pathlib.Path, run: Trained, kind: str, key: Key, n: int) -> pathlib.Path:
    """Writes samples a batch at a time, so that memory is that of a batch.

    An earlier file or folder of the same step is replaced once the new one is whole. What killed
    calls have left, of any step, is removed first.

    Args:
      workdir: the folder of the run, which may be in use: nothing else in it is touched.
      run: what it has come to.
      kind: "npz": exported/<step>.npz with the array arr_0, images uint8 (n, h, w, c), points
        float32 (n, d). "png": exported/<step>/000000.png and so on.
      key: random key of :meth:`Trained.generate`.
      n: how many samples.

    Returns:
      The file or the folder.

    Raises:
      UsageError: PNGs of what is no image, or has another number of channels than they have.
      StorageError: they could not be written.
    """
    shape, is_image = run.dataset.sample_shape, run.dataset.is_image
    if kind == "png" and not (is_image and shape[-1] in _DRAWABLE):
        raise UsageError(
            f"format: got png for samples of shape {shape}; expected npz, or images of "
            f"{', '.join(map(str, _DRAWABLE))} channels"
        )
    target = workdir / _FOLDER / (f"{run.step}.npz" if kind == "npz" else str(run.step))
    with tqdm(total=n, desc=f"Sampling at step {run.step}") as bar:

        def batches() -> Iterator[np.ndarray]:
            for batch in run.batches(key, n):
                yield np.rint(255 * batch).astype(np.uint8) if is_image else batch
                bar.update(len(batch))

        with files.storage(str(target)):
            files.remove_left(files.folder(workdir, _FOLDER), "[0-9]*")
            if kind == "npz":
                dtype = np.dtype(np.uint8 if is_image else np.float32)
                _write_npz(target, batches(), (n, *shape), dtype)
            else:
                _write_pngs(target, batches())
    return target


def _write_npz(
    target: pathlib.Path, batches: Iterator[np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with (
        files.replacing(target, shared=True) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, header)
        for batch in batches:
            array.write(np.ascontiguousarray(batch, dtype).tobytes())


def _write_pngs(target: pathlib.Path, batches: Iterator[np.ndarray]) -> None:
    with files.replacing_folder(target) as folder:
        count = 0
        for batch in batches:
            for image in batch:
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(folder / f"{count:06d}.png")
                count += 1
