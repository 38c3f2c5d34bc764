"""What a training step and a pair sum cost over devices, counted in the compiled programs.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.step_costs

Nothing is run. A generator of two dense layers on points of 784 coordinates, 512 samples over 1, 2,
4 and 8 devices, and the SVGD direction of 131072 points of 32, by a ring and on gathered points.
Collectives are counted once, those of the median's passes and of a ring's turns too, which are
loops.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernelgrad import kernels, objectives, pairwise, svgd, train
from kernelgrad.types import Array, Key, PyTree

_SAMPLES, _DIM, _LATENT_DIM, _WIDTH = 512, 784, 50, 256
_POINTS = 1 << 17  # of the pair sums
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8, "pred": 1, "s8": 1, "u8": 1}
_KINDS = ("all-gather", "all-reduce", "collective-permute")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_MIXTURE = functools.partial(kernels.median_mixture, kernels.imq_mixture)
_OBJECTIVES = {"mmd": objectives.mmd_v(_MIXTURE), "kl": objectives.kl(_MIXTURE)}


def collectives(program: str) -> dict[str, int]:
    """Returns the bytes that the collectives of a compiled program result in, by kind."""
    sizes: dict[str, int] = {}
    for arrays, kind in _COLLECTIVE.findall(program):
        for dtype, shape in _ARRAY.findall(arrays):
            count = int(np.prod([int(side) for side in shape.split(",") if side], dtype=np.int64))
            sizes[kind] = sizes.get(kind, 0) + _BYTES[dtype] * count
    return sizes


def _compiled(objective: objectives.Objective, num_devices: int) -> Any:
    def generator(params: PyTree, batch_stats: PyTree, latents: Array) -> tuple[Array, PyTree]:
        return jnp.tanh(latents @ params["in"]) @ params["out"], batch_stats

    def sample_latents(key: Key, n: int) -> Array:
        return jax.random.normal(key, (n, _LATENT_DIM))

    optimizer, devices = optax.adam(1e-3), jax.local_devices()[:num_devices]
    params = {"in": jnp.ones((_LATENT_DIM, _WIDTH)), "out": jnp.ones((_WIDTH, _DIM))}
    state = train.replicate(train.init(params, {}, optimizer), devices)
    step = train.make_train_step(
        generator, objective, optimizer, sample_latents=sample_latents, axis_name=train.AXIS
    )
    data = np.zeros((num_devices, _SAMPLES // num_devices, _DIM), np.float32)
    mapped: Any = train.pmap_train_step(step, devices)
    return mapped.lower(state, jax.random.key(0), data).compile()


def _pair_sum(num_devices: int, gathered: bool) -> Any:
    """Returns the program of the SVGD direction, of points that are each device's share."""
    kernel = kernels.imq_mixture([1.0, 2.0])

    def direction(x: Array, scores: Array) -> Array:
        if not gathered:
            return svgd.svgd_direction(x, scores, kernel, axis_name=train.AXIS)
        everyone = [jax.lax.all_gather(each, train.AXIS, tiled=True) for each in (x, scores)]
        sums = pairwise.stein_sum(kernel, x, *everyone)
        return sums / (x.shape[0] * num_devices)

    devices = jax.local_devices()[:num_devices]
    points = jax.ShapeDtypeStruct((num_devices, _POINTS // num_devices, 32), jnp.float32)
    mapped: Any = jax.pmap(direction, axis_name=train.AXIS, devices=devices)
    return mapped.lower(points, points).compile()


def _cells(program: Any) -> tuple[str, str]:
    """Returns the kilobytes of the collectives, and those of what the program holds besides."""
    sizes = collectives(program.as_text())
    sent = " / ".join(f"{sizes.get(kind, 0) / 1000:.0f}" for kind in _KINDS)
    return sent, f"{program.memory_analysis().temp_size_in_bytes / 1000:.0f}"


def main() -> None:
    """Prints a row for each objective, and way to add up pairs, and number of devices."""
    print(f"| objective | devices | MFLOP | {', '.join(_KINDS)}, kB | temporaries, kB |")
    print("|---|---|---|---|---|")
    for name, objective in _OBJECTIVES.items():
        for count in (1, 2, 4, 8):
            program = _compiled(objective, count)
            flops, cells = program.cost_analysis()["flops"], " | ".join(_cells(program))
            print(f"| {name} | {count} | {flops / 1e6:.0f} | {cells} |", flush=True)
    print(f"\n| pairs | devices | {', '.join(_KINDS)}, kB | temporaries, kB |")
    print("|---|---|---|---|")
    for name, gathered in {"ring": False, "gathered": True}.items():
        for count in (1, 2, 4, 8):
            print(f"| {name} | {count} | {' | '.join(_cells(_pair_sum(count, gathered)))} |")


if __name__ == "__main__":
    main()
