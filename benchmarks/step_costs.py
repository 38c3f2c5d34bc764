"""What a training step costs over devices, counted in the compiled programs; nothing is run.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.step_costs

A generator of two dense layers on points of 784 coordinates, 512 samples over 1, 2, 4 and 8
devices. Collectives are counted once, those of the median's passes too, which are loops.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernelgrad import kernels, objectives, train
from kernelgrad.types import Array, Key, PyTree

_SAMPLES, _DIM, _LATENT_DIM, _WIDTH = 512, 784, 50, 256
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


def main() -> None:
    """Prints a row for each objective and number of devices."""
    print(f"| objective | devices | MFLOP | {', '.join(_KINDS)}, kB | temporaries, kB |")
    print("|---|---|---|---|---|")
    for name, objective in _OBJECTIVES.items():
        for count in (1, 2, 4, 8):
            program = _compiled(objective, count)
            sizes, flops = collectives(program.as_text()), program.cost_analysis()["flops"]
            memory = program.memory_analysis().temp_size_in_bytes
            sent = " / ".join(f"{sizes.get(kind, 0) / 1000:.0f}" for kind in _KINDS)
            cells = f"{flops / 1e6:.0f} | {sent} | {memory / 1000:.0f}"
            print(f"| {name} | {count} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
