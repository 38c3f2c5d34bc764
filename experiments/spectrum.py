"""Shows the spectrum of the Stein gram of runs of KL or MMD^2, beside their ridge.

    python -m experiments.spectrum --runs=digits=runs/digits --workdir=runs/spectrum

For each run of experiments.train with --objective=kl or mmd, at its start and at each of its
checkpoints that are kept: the eigenvalues of K between the samples, under the run's own kernel, and
what its ridge keeps of each; and the directions of both objectives on the same batches, their size,
what all samples have alike of them, and the angle between them. The batches are those of the
training steps from there on, while the generator stays.

Leaves spectrum.png, table.md and results.json. The same command makes them anew. Nothing is written
to the folders of the runs, which may go on meanwhile.
"""

import dataclasses

from tqdm import tqdm

from experiments.reports import spectra
from experiments.run import command, fields, places, threads
from experiments.run.errors import UsageError, short
from experiments.run.workdirs import Workdir
from experiments.training import objectives, settings, stein_grams, trained
from experiments.training.objectives import UnderAKernel
from experiments.training.stein_grams import Spectrum


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    runs: tuple[str, ...] = fields.words(
        (), "Runs of experiments.train with --objective=kl or mmd: name=workdir,..."
    )
    num_batches: int = fields.integer(10, 1, 1000, "Batches of each step that is looked at.")


def run(
    config: Config, *, workdir: str, data_dir: str | None = None
) -> dict[str, dict[int, Spectrum]]:
    """Looks at every run, at its start and at every step that it has kept.

    Args:
      config: the settings.
      workdir: folder of table, picture and results.
      data_dir: where the data sets' files are.

    Returns:
      Spectra by step, by name of the run.

    Raises:
      UsageError: a setting out of its range, no run, or one that descends neither KL nor MMD^2,
        sees features, has no checkpoint, or has data that are not drawn on the device.
      DataError: the data of a run are missing.
      StorageError: a folder cannot be used.
    """
    places.workdir(workdir)
    fields.validate(config)
    folders = trained.named(config.runs)
    if not folders:
        raise UsageError("runs: got none; expected name=workdir,name=workdir")
    terms = {name: _terms(place) for name, place in folders.items()}
    kept = {
        name: trained.kept(place, data_dir, check=stein_grams.check)
        for name, place in folders.items()
    }
    with (
        Workdir(workdir, config, free_fields=tuple(fields.rules(Config))) as folder,
        threads.one_for_blas(),
    ):
        states = {name: one.states() for name, one in kept.items()}
        found: dict[str, dict[int, Spectrum]] = {name: {} for name in kept}
        num_looks = config.num_batches * sum(map(len, states.values()))
        with tqdm(total=num_looks, unit="batch") as bar:
            for name, one in kept.items():
                look = stein_grams.watch(one, terms[name])
                for step, state in states[name].items():
                    bar.set_description(f"{name}, step {step}")
                    seen = []
                    for batch in look(state, config.num_batches):
                        seen.append(batch)
                        bar.update()
                    found[name][step] = stein_grams.spectrum(seen)
        titles = {name: _title(name, folders[name], one.config) for name, one in kept.items()}
        spectra.write(folder, titles, found)
    return found


def _terms(place: str) -> UnderAKernel:
    """Returns kernel and directions of the run in a folder, before anything is read or compiled."""
    stored = trained.stored_config(place)
    terms = objectives.under_a_kernel(stored)
    if terms is None:
        wanted = " or ".join(objectives.UNDER_A_KERNEL)
        raise UsageError(
            f"runs: got {place}, a run of {stored.objective}; expected one of {wanted}"
        )
    if settings.sees_features(stored):
        names = ",".join(stored.features)
        raise UsageError(
            f"runs: got {place}, a run that sees {names}; expected one without features"
        )
    trained.require_checkpoint(place)
    return terms


def _title(name: str, place: str, stored: settings.Config) -> str:
    of = f"{stored.objective} on {short(stored.dataset)}, batches of {stored.batch_size}"
    return f"{name} is {place}: {of}"


def main() -> None:
    """Parses the flags and looks."""
    command.main_in_workdir(run, Config)


if __name__ == "__main__":
    main()
