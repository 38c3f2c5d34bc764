"""Settings that no run reads: a flag for one would do nothing, unsaid.

Which they are follows from `of` and `beside` of their rules (:class:`experiments.run.fields.Rule`).
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from experiments.run import fields
from experiments.run.errors import UsageError


class _Condition(NamedTuple):
    """What another setting has to be, for one to be read.

    Attributes:
      setting: the other one.
      unread_at: its values, or the words of a list, at which the one is not read.
      title: of those values in an error.
      expected: what an error expects in their place.
    """

    setting: str
    unread_at: tuple[Any, ...]
    title: str
    expected: str

    def fails(self, config: Any) -> bool:
        """Returns whether the setting has no other value than those."""
        value = getattr(config, self.setting)
        return all(one in self.unread_at for one in (value if type(value) is tuple else [value]))


def refuse(given: Mapping[str, Any], configs: Collection[Any]) -> None:
    """Refuses a setting that was given and that no run reads.

    Args:
      given: values by name, of settings and of anything else.
      configs: of the runs, all of one class.

    Raises:
      UsageError: the first such setting.
    """
    for name, (why, expected) in among(configs).items():
        if name in given:
            raise UsageError(
                f"{name}: got {fields.shown(given[name])}, which nothing reads with {why}; "
                f"expected it with {expected}"
            )


def among(configs: Collection[Any]) -> dict[str, tuple[str, str]]:
    """Returns the settings that no config reads, each with why, and with what it would be read."""
    config_class: type = type(next(iter(configs)))
    rules, found = fields.rules(config_class), {}
    for name, conditions in _conditions(config_class).items():
        failed: dict[_Condition, dict[str, None]] = {}
        for config in configs:
            first = next((one for one in conditions if one.fails(config)), None)
            if first is None:
                break
            text = rules[first.setting].text(getattr(config, first.setting))
            failed.setdefault(first, {})[text] = None
        else:
            why = ", ".join(f"{one.title}{', '.join(texts)}" for one, texts in failed.items())
            found[name] = why, ", ".join(one.expected for one in failed)
    return found


@functools.cache
def _conditions(config_class: type) -> dict[str, list[_Condition]]:
    """Returns what has to hold, all of it, for each setting that not every run reads."""
    rules, found = fields.rules(config_class), {}
    for name, rule in rules.items():
        conditions = [
            _Condition(other, tuple(values), f"{other}=", f"another {other}")
            for other, values in rule.beside.items()
        ]
        if rule.of:
            some = rule.of(name)
            other, reader = next(r for r in rules.items() if set(some) <= set(r[1].choices))
            others = tuple(choice for choice in reader.choices if choice not in some)
            title = f"{reader.flag or other} "
            conditions.insert(0, _Condition(other, others, title, ", ".join(some)))
        if conditions:
            found[name] = conditions
    return found
