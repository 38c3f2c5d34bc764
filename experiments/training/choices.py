"""What a row of the table of objectives says: how one is built, and all that is special about it.

Functions of a row take what they need by keyword: settings of a run, fields of
:class:`experiments.training.settings.Config`.
"""

import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import optax

from experiments.networks import critics, energies
from experiments.networks.conditional import ConditionalCritic, JointEnergy
from experiments.run import fields
from experiments.training import optimizers
from kernelgrad.objectives import Objective
from kernelgrad.two_player import TwoPlayer
from kernelgrad.types import Array

PAPER_SCALES = (0.5, 1.0, 2.0, 4.0)  # of paper 000
LOCAL_SCALES = (0.01, 0.03, 0.1, 0.3)
_OF_CRITICS = ("critic_steps", "critic_learning_rate")
T = TypeVar("T")


def value_network(
    shape: tuple[int, ...],
    axis_name: str | None = None,
    *,
    width: int,
    spectral_norm: bool,
    conditional: bool,
    batch_norm: bool,
) -> nn.Module:
    """Returns the critic of samples of a shape, of one value each."""
    network: nn.Module = critics.critic_for(
        shape, width, spectral_norm, batch_norm=batch_norm, axis_name=axis_name
    )
    return ConditionalCritic(network, shape) if conditional else network


def penalized_network(
    shape: tuple[int, ...],
    axis_name: str | None = None,
    *,
    width: int,
    spectral_norm: bool,
    conditional: bool,
) -> nn.Module:
    """Returns the same where each sample's slope counts, so that no value depends on a batch."""
    return value_network(
        shape,
        axis_name,
        width=width,
        spectral_norm=spectral_norm,
        conditional=conditional,
        batch_norm=False,
    )


def feature_network(
    shape: tuple[int, ...],
    axis_name: str | None = None,
    *,
    width: int,
    spectral_norm: bool,
    conditional: bool,
    num_features: int,
) -> nn.Module:
    """Returns the critic of samples of a shape, of some features each."""
    del axis_name
    network: nn.Module = critics.critic_for(shape, width, spectral_norm, num_features)
    return ConditionalCritic(network, shape) if conditional else network


def energy_network(
    shape: tuple[int, ...],
    axis_name: str | None = None,
    *,
    width: int,
    energy_norm: str,
    batch_norm: bool,
    tied_weights: bool,
    conditional: bool,
    margin: float,
) -> nn.Module:
    """Returns the autoencoder's energy of samples of a shape, with its features."""
    network: nn.Module = energies.energy_for(
        shape, width, energy_norm, batch_norm=batch_norm, tied=tied_weights, axis_name=axis_name
    )
    return JointEnergy(network, shape, margin) if conditional else network


class Choice(NamedTuple):
    """An objective as the flags name it. Functions take settings of a run by keyword.

    Attributes:
      summary: what the generator descends, in one line.
      build: () -> the objective.
      critic_steps: before each step of the generator, by default; 0 without a critic.
      kernel_scales: by default.
      normalize: whether the direction is normalised by default.
      spectral_norm: whether the critic is normalised by default.
      critic_rate: the critic's learning rate by default, in units of the generator's.
      network: (shape of a sample, mapped axis over which it pools statistics) -> the critic.
      optimizer: that of the settings -> the critic's.
      energy: output of the critic -> energies (n,), low where it sees data; None without a critic,
        or with one of features.
      batchwise: whether the critic gives a point another direction among other points.
      fits_kale: whether the energy is fitted by KALE, whose value on test data is one to report.
      needs: settings that have to be > 0, with their values for points in the plane.
      extra: of the project that it needs, named as the package that it brings.
    """

    summary: str
    build: Callable[..., Objective | TwoPlayer]
    critic_steps: int = 0
    kernel_scales: tuple[float, ...] = PAPER_SCALES
    normalize: bool = False
    spectral_norm: bool = False
    critic_rate: float = 1.0
    network: Callable[..., nn.Module] = value_network
    optimizer: Callable[..., optax.GradientTransformation] = lambda optimizer: optimizer
    energy: Callable[[Any], Array] | None = None
    batchwise: bool = False
    fits_kale: bool = False
    needs: Mapping[str, Any] = MappingProxyType({})
    extra: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the extra that it needs is there."""
        return self.extra is None or importlib.util.find_spec(self.extra) is not None

    @property
    def settings(self) -> set[str]:
        """The settings that the objective reads."""
        if not self.critic_steps:
            return set(fields.read_by(self.build))
        of_functions = map(fields.read_by, (self.build, self.network, self.optimizer))
        return {*_OF_CRITICS, *(name for names in of_functions for name in names)}

    @property
    def has_own_noise(self) -> bool:
        """Whether the noise is the objective's, and none is put on samples and data for it."""
        return "noise_variance" in self.settings

    def make(self, config: Any) -> Objective | TwoPlayer:
        """Returns the objective of a run's config."""
        return self.call(self.build, config)

    def critic_network(
        self, config: Any, shape: tuple[int, ...], axis_name: str | None = None
    ) -> nn.Module:
        """Returns the critic of a run's config for samples of a shape."""
        return self.call(self.network, config, shape, axis_name)

    def critic_optimizer(self, config: Any) -> optax.GradientTransformation:
        """Returns the critic's optimizer of a run's config."""
        rate = config.critic_learning_rate
        if rate is None:
            rate = self.critic_rate * config.learning_rate
        steps = config.critic_steps or self.critic_steps
        return self.call(self.optimizer, config, optimizers.make(config, rate, steps))

    def call(self, function: Callable[..., T], config: Any, *arguments: Any) -> T:
        """Returns what a function makes of the settings that it reads, by this row's defaults."""
        settings = {name: getattr(config, name) for name in fields.read_by(function)}
        for name in ("kernel_scales", "spectral_norm"):
            if settings.get(name, name) is None:
                settings[name] = getattr(self, name)
        return function(*arguments, **settings)
