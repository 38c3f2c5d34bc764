"""The rules behind a verdict, and the claims of each page on the figures that stand there."""

import json
import math

import numpy as np
import pytest

from experiments.papers import claims, paper000, paper001, paper002, paper003, paper004
from experiments.reports import comparisons
from experiments.reports.comparisons import Curves
from experiments.run.errors import StorageError


@pytest.mark.parametrize(
    ("one", "other", "holds"),
    [
        ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], True),  # seed by seed, though the seeds spread
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], False),  # 1/3 is not above its error, 1/3
        ([1.0, 2.0, 3.0], [1.1, 2.0, 4.0], True),
        ([2.0], [2.1], True),
        ([2.0], [2.0], False),
        ([math.nan], [2.0], False),
    ],
)
def test_below_is_seed_by_seed_and_by_more_than_the_error(one, other, holds):
    assert claims.lower("a", one, other).holds is holds
    assert claims.higher("a", np.negative(one), np.negative(other)).holds is holds
    assert not claims.higher("a", one, other).holds


def test_limits_are_those_of_every_seed():
    assert claims.at_most("a", [1.0, 2.0], 2).holds
    assert not claims.at_most("a", [1.0, 2.1], 2).holds
    assert claims.at_least("a", [1.0, 2.0], 1).holds
    assert not claims.at_least("a", [0.9, 2.0], 1).holds
    assert not claims.at_least("a", [math.nan, 2.0], 1).holds
    assert claims.at_least("a", [1.0, 2.0], 1)[:2] == ("a: at least 1", "1.5 ± 0.71")
    assert claims.rising("a", [[1.0], [2.0], [3.0]]).holds
    assert not claims.rising("a", [[1.0], [2.0], [2.0]]).holds


@pytest.mark.parametrize(
    ("held", "word"),
    [((1, 1), "holds"), ((1, 0), "holds in part"), ((0, 0), "does not hold here")],
)
def test_the_verdict_follows_from_the_parts(held, word):
    parts = [claims.Part("", "", bool(one), 3) for one in held]
    assert claims.verdict(parts) == word
    alone = [part._replace(seeds=1) for part in parts]
    assert claims.verdict(alone) == f"{word} (one seed)"


@pytest.mark.parametrize("content", [None, "{", "[NaN]"])
def test_what_a_run_has_left_is_named_where_it_is_damaged(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StorageError, match=r"results\.json: "):
        claims.results(path)


@pytest.mark.parametrize("look", [claims.last, claims.histories])
def test_records_that_are_missing_are_an_error(tmp_path, look):
    with pytest.raises(StorageError, match="got no records"):
        look(tmp_path)


# ---------------------------------------------------------------------- the figures of the pages


def leave(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def leave_records(folder, *records):
    folder.mkdir(parents=True)
    lines = (json.dumps({"step": step, **record}) for step, record in enumerate(records))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def leave_curves(folder, reference=None, **objectives):
    """objective=(ms a step, {metric: a figure a seed}); half as good at half of the steps."""
    curves = {
        name: Curves(
            np.array([5, 10]),
            {metric: np.array([[x / 2, x] for x in seeds]) for metric, seeds in metrics.items()},
            ms,
        )
        for name, (ms, metrics) in objectives.items()
    }
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_bytes(comparisons.as_json(curves, reference or {}))


def verdicts(paper, root, *of):
    """The verdicts of the claims of a page that these runs are enough for, without the seeds."""
    found = [one for one in paper.PAPER.claims if set(one.of) <= set(of)]
    return [claims.verdict(one.look(root)).removesuffix(" (one seed)") for one in found]


def test_kl_against_mmd(tmp_path):
    kl = {
        "classifier_frechet": [57.2, 58.9, 59.0],
        "test_mmd": [0.0049, 0.0087, 0.0067],
        "inception_score": [6.906, 7.106, 7.008],
    }
    mmd = {
        "classifier_frechet": [91.7, 98.5, 100.6],
        "test_mmd": [0.0129, 0.0084, 0.0076],
        "inception_score": [6.320, 5.846, 5.974],
    }
    real = {"inception_score": 9.801}
    leave_curves(tmp_path / "compare", real, kl=(19.9, kl), mmd=(17.5, mmd))
    own_rate = {
        name: {metric: figures[:1] for metric, figures in one.items()}
        for name, one in (("kl", kl), ("mmd", mmd))
    }
    leave_curves(tmp_path / "rate", kl=(1.0, own_rate["kl"]), mmd=(1.0, own_rate["mmd"]))
    found = verdicts(paper000, tmp_path, "compare", "rate")
    assert found == ["holds", "holds", "holds in part", "holds"]
    better, at_the_rate, faster, _ = (one.look(tmp_path) for one in paper000.CLAIMS[:4])
    assert [part.seeds for part in at_the_rate] == [1, 1]
    assert [part.rule for part in better] == ["test_mmd: lower", "inception_score: higher"]
    assert better[1].ours == "7.007 ± 0.1 against 6.047 ± 0.25"
    assert [part.holds for part in faster] == [False, True, False]  # KL has 0.88 of all by then


def test_an_adam_that_forgets(tmp_path):
    spread = np.array([-1.0, 0.0, 1.0])
    kl = 1.0, {"inception_score": 5.64 + 0.16 * spread, "nearest_l1": 69.2 + spread}
    mmd = 1.0, {"inception_score": 5.21 + 0.02 * spread, "nearest_l1": 74.4 + spread}
    for name, one, other, verdict in (
        ("ahead", kl, mmd, "holds"),
        ("behind", mmd, kl, "does not hold here"),
    ):
        leave_curves(tmp_path / name / "memory", **{"kl:b2=0.9": one, "mmd:b2=0.9": other})
        assert verdicts(paper000, tmp_path / name, "memory") == [verdict]


def test_the_ridge_leads_from_kl_to_mmd(tmp_path):
    """Three seeds, their figures at 600, 1800 and 6000 steps; the score turns round on the way."""
    ends = {  # inception score, nearest l1
        "kl:ridge=0.4": ((2.4, 3.5, 6.0), (93.6, 84.4, 63.4)),
        "kl": ((3.0, 4.3, 5.8), (101.0, 86.0, 66.2)),
        "kl:ridge=40": ((3.6, 4.9, 5.7), (108.8, 90.8, 68.9)),
        "mmd": ((3.5, 5.1, 5.8), (115.9, 95.8, 71.5)),
    }
    curves = {
        name: Curves(
            np.array([600, 1800, 6000]),
            {
                metric: np.add.outer([-0.05, 0.0, 0.05], values)
                for metric, values in zip(("inception_score", "nearest_l1"), both, strict=True)
            },
            1.0,
        )
        for name, both in ends.items()
    }
    (tmp_path / "ridge").mkdir()
    (tmp_path / "ridge/comparison.json").write_bytes(comparisons.as_json(curves, {}))
    assert verdicts(paper000, tmp_path, "ridge") == ["holds in part"]
    parts = paper000.CLAIMS[-1].look(tmp_path)
    assert [part.holds for part in parts] == [True, True, False, True]
    assert parts[0].rule == "inception_score after 3 epochs: rises"
    assert parts[0].ours.startswith("3.5 ± 0.05, 4.3")


def test_an_early_evaluation_is_the_last_up_to_a_step():
    curves = {"kl": Curves(np.array([5, 10, 20]), {"a": np.array([[1.0, 2.0, 3.0]])}, 1.0)}
    found = [claims.early(curves, "kl", step)["a"].tolist() for step in (4, 5, 9, 10, 30)]
    assert found == [[1.0], [1.0], [1.0], [2.0], [3.0]]


def test_gan_kl_on_the_roll(tmp_path):
    ends = {
        "gan_kl": 0.4,
        "gan_non_saturating": 0.54,
        "gan_saturating": 0.399,
    }
    tuned = {"ratio_ulsif:select=true": 0.57, "ratio_logistic": 1.6, "gan_kl:critic_steps=2": 7.0}
    for folder, rows in (("toys", ends), ("toys_tuned", tuned)):
        for name, end in rows.items():
            for seed in range(3):
                records = [{"true_kl": 11.1 + seed}, {"true_kl": end + 0.001 * seed}]
                leave_records(tmp_path / folder / name / f"seed{seed}", *records)
    found = verdicts(paper001, tmp_path, "toys", "toys_tuned")
    assert found == ["holds", "holds in part", "holds in part"]


def test_vanishing_gradients(tmp_path):
    def course(*values):
        return [
            {"saturating_norm": x, "non_saturating_variance": 1 / x, "accuracy": 0.995}
            for x in values
        ]

    tail = {"cauchy_distance": 0.071, "gaussian_distance": 0.23}
    leave(
        tmp_path / "diagnostics/results.json",
        {
            "diagnoses": {
                epoch: {
                    "records": {"no noise": course(*plain), "noise": course(*noised)},
                    "tails": {"one latent": tail, "100 latents": {}, "over steps of D": tail},
                    "certificate": {"cloud": [14.4], "distance": 3.26, "diameter": 8.0},
                }
                for epoch, plain, noised in (
                    ("1", (0.26, 0.26, 2e-5), (0.077, 0.27, 0.11)),
                    ("25", (0.28, 2.7, 0.39), (0.18, 0.92, 0.77)),
                )
            }
        },
    )
    found = verdicts(paper002, tmp_path, "diagnostics")
    assert found == ["holds", "holds in part", "holds in part", "holds in part", "holds"]


def test_machines_and_what_images_teach(tmp_path):
    likelihoods = {
        "svgd": (-833.6, -832.3, -832.3),
        "score": (-839.2, -835.9, -838.9),
        "smoothed": (-836.4, -829.5, -839.5),
        "exact": (-744.9, -746.0, -745.3),
    }
    noised = {"svgd": (-845.3, -861.8, -845.6), "score": (-844.8, -864.8, -846.1)}
    for folder, directions in (("rbm", likelihoods), ("rbm_noise", noised)):
        for name, seeds in directions.items():
            for seed, value in enumerate(seeds):
                record = {"test_log_likelihood": value}
                leave_records(tmp_path / folder / name / f"seed{seed}", record)
    leave(tmp_path / "rbm/results.json", {"N(0, I)": {"mean": "-765.1"}})
    rows = {
        "real": ((9.895, 0.9933), (9.895, 0.9933), (9.895, 0.993)),
        "duplicates": ((9.794, 0.908), (9.863, 0.9128), (9.764, 0.8997)),
        "dcgan": ((8.424, 0.7394), (8.227, 0.693), (8.466, 0.6479)),
        "steingan": ((9.8, 0.8008), (9.642, 0.7647), (9.608, 0.8019)),
    }
    for seed in range(3):
        scores = {
            name: {"inception_score": seeds[seed][0], "accuracies": [seeds[seed][1]]}
            for name, seeds in rows.items()
        }
        place = f"scores_seed{seed}" if seed else "scores"
        leave(tmp_path / place / "results.json", {"rows": scores})
    papers = {"real": (9.848, 0.9258), "duplicates": (9.807, 0.4496), "dcgan": (7.193, 0.4478)}
    papers["steingan"] = (7.065, 0.6389)
    rows = {name: {"inception_score": s, "accuracies": [a]} for name, (s, a) in papers.items()}
    leave(tmp_path / "cifar_scores/results.json", {"rows": rows})
    found = verdicts(paper003, tmp_path, "rbm", "rbm_noise", "scores", "cifar_scores")
    no = "does not hold here"
    assert found[:4] == ["holds", no, no, "holds in part"]
    assert found[4:8] == ["holds", no, no, "holds in part"]
    assert found[8:] == ["holds"] * 4
    taught = next(one for one in paper003.CLAIMS if "teaches more than DCGAN" in one.says)
    (part,) = taught.look(tmp_path)
    assert (part.ours, part.seeds) == ("0.7891 ± 0.021 against 0.6934 ± 0.046", 3)


def test_the_model_against_its_generator(tmp_path):
    before, after = (161.2, 179.8, 148.1), (103.3, 89.0, 117.4)
    for seed, (first, last) in enumerate(zip(before, after, strict=True)):
        rows = {
            name: {"classifier_frechet": x, "classifier_kid": x, "inception_score": 1 / x}
            for name, x in {"generator": first, "hmc, 40 steps": last, "real samples": 1}.items()
        }
        name = f"kale_seed{seed}" if seed else "kale"
        leave(tmp_path / name / "samples_hmc/results.json", {"rows": rows})
    assert verdicts(paper004, tmp_path, "kale") == ["holds"]
    parts = paper004.CLAIMS[0].look(tmp_path)
    assert {part.seeds for part in parts} == {3}
    assert parts[0].ours == "103.2 ± 14 against 163 ± 16"


def test_smooth_but_not_at_that_rate(tmp_path):
    distances = [0.0, 1.0, 2.0]
    rates = {
        "linear": {"sizes": [64, 256], "errors": [[0.2, 0.1], [0.4, 0.2]]},
        "RKHS": {"sizes": [64, 256], "errors": [[0.2, 0.15], [0.4, 0.3]]},
    }
    masses = {"distances": distances, "kale": [0.0, 0.5, 1.0]}
    leave(tmp_path / "divergences/config.json", {"lipschitz": 0.5})
    leave(tmp_path / "divergences/results.json", {"point_masses": masses, "rates": rates})
    assert verdicts(paper004, tmp_path, "divergences") == ["holds", "holds in part"]
