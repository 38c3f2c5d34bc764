"""Times kernelgrad against its peers, dense JAX and the floor of this machine.

    python -m benchmarks --rows=svgd,mmd-1000x50

Every contestant first runs in a process of its own, which gives its peak memory above that of a
bare JAX process, its first call (with compilation), and, for one that takes too much memory or
time, the reason why it is not timed. The others are timed in one process, in rounds, one after the
other in rotating order, with the machine's own rates in between; ratios are taken round by round.
The table shows median / best. "error" is the relative distance of our result from float64, and of
a peer's result from ours.

A row is a task at a size, such as svgd-1000x50. A task alone stands for all of its listed rows;
sizes that are not listed work as well, without goals.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # fresh processes need memory, too

import jax
from tqdm import tqdm

from benchmarks import compete, floors, fresh, report, rows


def main() -> None:
    """Parses the flags, runs the rows, prints and writes the table."""
    arguments = _parse()
    try:
        chosen = rows.select(arguments.rows)
    except ValueError as error:
        print("benchmarks: error:", error, file=sys.stderr)
        sys.exit(2)
    folder = pathlib.Path(arguments.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    limits = fresh.Limits(arguments.max_gib, arguments.max_seconds)
    meter = floors.Meter()
    machine = _machine(meter(), arguments)
    title = "kernelgrad on {device}, jax {jax}".format(**machine)
    bare = fresh.bare(limits)
    results: list[compete.Result] = []
    with tqdm(chosen, unit="row") as bar:
        for row in bar:
            bar.set_description(row.name)
            results.append(
                compete.run(
                    row,
                    meter,
                    limits,
                    bare.peak_mb,
                    num_rounds=arguments.rounds,
                    on_stage=bar.set_postfix_str,
                )
            )
            table = report.table(results)
            (folder / "bench.json").write_text(
                json.dumps(report.to_json(results, machine), indent=1)
            )
            (folder / "bench.md").write_text(f"{title}\n\n{table}\n")
            (folder / "bench.png").write_bytes(report.bar_chart(results, title))
    print(title)
    print("{gflops:.0f} GF/s, {exp:.2g} exp/s, {rsqrt:.2g} rsqrt/s".format(**machine))
    print(table)
    print(f"written to {folder}: bench.json, bench.md, bench.png")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog=f"Tasks: {', '.join(rows.TASKS)}. Rows: {', '.join(rows.ROWS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default="", help="tasks or rows, comma-separated; all by default")
    parser.add_argument("--workdir", default="runs/bench", help="folder of the table (%(default)s)")
    parser.add_argument("--rounds", type=_positive, default=10, help="rounds (%(default)s)")
    parser.add_argument(
        "--max_gib",
        type=float,
        default=8.0,
        help="memory of one contestant in GiB, above which it is stopped (%(default)s)",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=90.0,
        help="time of one contestant in its own process, import included, in s (%(default)s)",
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer >= 1")
    return int(text)


def _machine(rates: floors.Rates, arguments: argparse.Namespace) -> dict[str, Any]:
    device = jax.local_devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{os.cpu_count()} CPUs ({kind})" if device.platform == "cpu" else kind,
        "jax": jax.__version__,
        "gflops": rates.flops / 1e9,
        "exp": rates.exp,
        "rsqrt": rates.rsqrt,
        "rounds": arguments.rounds,
    }


if __name__ == "__main__":
    main()
