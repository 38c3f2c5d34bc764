"""Which settings no run reads, and the line that refuses one of them."""

import dataclasses

import pytest

from experiments.run import command, fields, unread
from experiments.run.errors import UsageError

READERS = {"rate": ["slow"], "bound": ["slow", "fast"], "seeds": ["few", "all"]}


@dataclasses.dataclass(frozen=True)
class Config:
    """A choice of one and a choice of several, and who reads the rest."""

    pace: str = fields.choice("slow", ("slow", "fast", "none"), "One.")
    methods: tuple[str, ...] = fields.choices(
        ("all",), ("few", "all", "idle"), "Several.", flag="method"
    )
    noise: float = fields.not_negative(0.0, "Another.")
    limit: float | None = fields.number(None, 0.1, float("inf"), "Not set, or a number.")
    rate: float = fields.positive(0.1, "Of one choice.", of=READERS.get)
    bound: float = fields.positive(
        1.0, "Of two.", of=READERS.get, beside={"limit": (float("inf"),)}
    )
    seeds: int = fields.integer(1, 1, 9, "Of some methods.", of=READERS.get)
    steps: int = fields.integer(5, 1, 9, "Of noise.", beside={"pace": ("none",), "noise": (0.0,)})
    width: int = fields.integer(5, 1, 9, "Of all.")


@pytest.mark.parametrize(
    ("configs", "why"),
    [
        ([{}], {"steps": ("noise=0.0", "another noise")}),
        ([{"noise": 1.0}], {}),
        ([{"noise": 1.0, "pace": "fast"}], {"rate": ("pace fast", "slow")}),
        ([{"noise": 1.0, "pace": "fast"}, {}], {}),
        (
            [{"pace": "none"}, {"pace": "fast"}],
            {
                "rate": ("pace none, fast", "slow"),
                "steps": ("pace=none, noise=0.0", "another pace, another noise"),
            },
        ),
        (
            [{"pace": "none", "noise": 1.0}] * 2,
            {
                "rate": ("pace none", "slow"),
                "bound": ("pace none", "slow, fast"),
                "steps": ("pace=none", "another pace"),
            },
        ),
        (
            [{"noise": 1.0, "limit": float("inf")}],
            {"bound": ("limit=inf", "another limit")},
        ),
        ([{"noise": 1.0, "methods": ("idle",)}], {"seeds": ("method idle", "few, all")}),
        ([{"noise": 1.0, "methods": ("idle", "few")}], {}),
    ],
)
def test_a_setting_is_unread_where_a_condition_fails_in_every_run(configs, why):
    """What `of` and each of `beside` say has to hold in one and the same run."""
    expected = {name: why[name] for name in fields.rules(Config) if name in why}
    assert unread.among([Config(**changes) for changes in configs]) == expected


def test_what_is_given_and_unread_is_refused_and_nothing_else():
    configs = [Config(pace="none", methods=("idle",))]
    unread.refuse({}, configs)
    unread.refuse({"pace": "none", "width": 3, "workdir": "w"}, configs)
    message = "bound: got 2.0, which nothing reads with pace none; expected it with slow, fast"
    with pytest.raises(UsageError) as raised:
        unread.refuse({"width": 3, "bound": 2.0}, configs)
    assert str(raised.value) == message


def test_every_binary_with_a_config_and_a_folder_refuses_them(monkeypatch):
    started, starts = [], []
    monkeypatch.setattr(command, "main", lambda start, *_: starts.append(start))
    command.main_in_workdir(lambda config, **_: started.append(config), Config)
    starts[0]({"workdir": "w", "rate": 0.2})
    assert started == [Config(rate=0.2)]
    with pytest.raises(UsageError, match=r"^rate: got 0.2, which nothing reads with pace fast;"):
        starts[0]({"workdir": "w", "rate": 0.2, "pace": "fast"})
    assert len(started) == 1
