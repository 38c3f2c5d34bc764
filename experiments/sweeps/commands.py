"""A sweep as command lines, one a run, for any scheduler: Slurm, GNU parallel, xargs."""

import os
import pathlib
import shlex
from collections.abc import Sequence

from experiments.run import fields, files, unread
from experiments.sweeps.runs import Run
from experiments.training.settings import Config

LINES, SLURM = "commands.txt", "array.slurm"


def arguments(run: Run, workdir: pathlib.Path, data_dir: str | None) -> list[str]:
    """Returns the flags of experiments.train that make a run, on one device."""
    given = [f"--workdir={workdir}", "--num_devices=1"]
    if data_dir is not None:
        given.append(f"--data_dir={pathlib.Path(data_dir).expanduser().absolute()}")
    not_read = unread.among([run.config])
    for name, rule in fields.rules(Config).items():
        value = getattr(run.config, name)
        if value != rule.default and name not in not_read:
            given.append(f"--{rule.flag or name}={rule.text(value)}")
    return given


def write(root: pathlib.Path, runs: Sequence[Run], data_dir: str | None) -> list[str]:
    """Writes commands.txt and array.slurm into the folder of a sweep; returns the lines.

    Args:
      root: the folder.
      runs: those that are not finished.
      data_dir: where the data set's files are.
    """
    lines = [
        shlex.join(
            ["python", "-m", "experiments.train", *arguments(one, root / one.name, data_dir)]
        )
        for one in runs
    ]
    script = _SCRIPT.format(
        name=root.name,
        last=len(lines) - 1,
        here=shlex.quote(os.getcwd()),
        lines=shlex.quote(str(root / LINES)),
    )
    for name, content in {LINES: "".join(f"{line}\n" for line in lines), SLURM: script}.items():
        with files.storage(str(root / name)):
            files.replace(root / name, content.encode())
    return lines


_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
# sbatch --chdir={here} array.slurm; add --partition, --time and --gres as your cluster asks for.
# A run that was stopped goes on from its checkpoint when the same line is run again.
cd {here} || exit 1
eval "exec $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {lines})"
"""
