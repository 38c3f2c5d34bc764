"""The command lines of a sweep, read back as experiments.train reads them."""

import dataclasses
import os
import shlex
import subprocess

from experiments.run import command, unread
from experiments.sweeps import commands, runs
from experiments.train import Options
from experiments.training.settings import Config

BASE = Config(dataset="ring", kernel_scales=(0.5, 2.0), conditional=True, freeze_threshold=0.25)


def test_a_line_gives_the_settings_of_its_run(tmp_path):
    found = runs.expand(
        BASE,
        {
            "objective": ("kl", "ratio_ulsif", "steingan"),
            "ridge": (None, 0.1),
            "select": (True, False),
            "seed": (0, 7),
        },
    )
    lines = commands.write(tmp_path, found, "data")
    assert (tmp_path / commands.LINES).read_text().splitlines() == lines
    for run, line in zip(found, lines, strict=True):
        python, flag, module, *arguments = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", "experiments.train")
        given = command.parse(arguments, Config, Options)
        assert given.pop("workdir") == str(tmp_path / run.name)
        assert given.pop("data_dir") == os.path.abspath("data")
        assert given.pop("num_devices") == 1
        not_read = unread.among([run.config])
        assert given.keys().isdisjoint(not_read)
        kept = {name: getattr(run.config, name) for name in not_read}
        assert dataclasses.replace(Config(), **kept, **given) == run.config


def test_a_task_of_the_slurm_array_runs_its_line(tmp_path):
    found = runs.expand(BASE, {"seed": (0, 1, 2)})
    commands.write(tmp_path, found, None)
    script = (tmp_path / commands.SLURM).read_text()
    assert "#SBATCH --array=0-2\n" in script
    (tmp_path / commands.LINES).write_text("echo 'a b'\necho  'c  d'\n")
    done = subprocess.run(
        ["/bin/bash", str(tmp_path / commands.SLURM)],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "c  d\n"
