"""What stands on pictures of the plane, read from their artists, and what moves in the films."""

import io

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.contour import QuadContourSet
from matplotlib.quiver import Quiver
from PIL import Image

from experiments.pictures import canvas, clouds
from experiments.pictures.clouds import Backdrop, FieldFrame

BOUNDS = ((-2.0, 2.0), (-1.0, 3.0))
LABELS = ("$a$", "$b$")


def artists(axes, kind):
    return [artist for artist in axes.collections if isinstance(artist, kind)]


def offsets(axes):
    """Returns the points of each cloud, from the lowest to the topmost."""
    return [np.asarray(cloud.get_offsets()) for cloud in artists(axes, PathCollection)]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def peaked(at, rows=41, columns=81):
    """Returns a log density on a grid over BOUNDS, with its peak at a place."""
    (left, right), (bottom, top) = BOUNDS
    x, y = np.meshgrid(np.linspace(left, right, columns), np.linspace(bottom, top, rows))
    return -10 * ((x - at[0]) ** 2 + (y - at[1]) ** 2)


@pytest.fixture
def draws(rng):
    return rng.normal(size=(7, 2))


@pytest.fixture
def backdrop(draws):
    return Backdrop(BOUNDS, LABELS, draws=draws)


def test_points_are_over_the_data_on_the_datas_axes(figures, rng):
    samples, data = rng.normal(size=(5, 3)), rng.normal(size=(9, 4))
    samples[0] = 1e6
    clouds.points(samples, data, "kl on ring, step 20")
    (axes,) = figures[0].axes
    below, above = offsets(axes)
    np.testing.assert_array_equal(below, data[:, :2])
    np.testing.assert_array_equal(above, samples[:, :2])
    assert axes.get_title() == "kl on ring, step 20"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$x_1$", "$x_2$")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "generated"]
    low, high = data[:, :2].min(axis=0), data[:, :2].max(axis=0)
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    np.testing.assert_allclose(limits[:, 0], low - 0.15 * (high - low))
    np.testing.assert_allclose(limits[:, 1], high + 0.15 * (high - low))


def test_numbers_are_histograms_on_the_datas_axis(figures, rng):
    samples, data = rng.normal(size=(50, 1)), rng.normal(2.0, 0.5, size=(90, 1))
    samples[0] = 1e30
    clouds.points(samples, data, "kl on mine, step 20")
    clouds.on_a_line({"before": samples, "after": data}, data)
    assert [axes.get_title() for axes in figures[1].axes] == ["before", "after"]
    for axes, points in zip(
        (*figures[0].axes, *figures[1].axes), (samples, samples, data), strict=True
    ):
        low, high = data.min(), data.max()
        ends = (low - 0.15 * (high - low), high + 0.15 * (high - low))
        np.testing.assert_allclose(axes.get_xlim(), ends)
        behind, above = (patch.get_data() for patch in axes.patches)
        for (heights, edges, _), values in ((behind, data), (above, points)):
            inside = np.mean((values >= ends[0]) & (values <= ends[1]))
            np.testing.assert_allclose(np.sum(heights * np.diff(edges)), inside, rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_data_that_are_all_one_are_in_the_middle(figures, value, d):
    data = np.full((5, d), value, np.float32)
    clouds.points(data, data, "one place")
    for ends in (figures[0].axes[0].get_xlim(), figures[0].axes[0].get_ylim())[: min(d, 2)]:
        assert ends[0] < value < ends[1]
        np.testing.assert_allclose(np.mean(ends), value, atol=1e-6)


@pytest.mark.parametrize("num", [1, 4, 5])
def test_sets_of_points_are_side_by_side(figures, backdrop, draws, rng, num):
    sets = {f"set {i}": rng.normal(size=(3 + i, 2)) for i in range(num)}
    clouds.sample_panels(sets, backdrop)
    panels = visible(figures[0])
    assert [axes.get_title() for axes in panels] == list(sets)
    for axes, points in zip(panels, sets.values(), strict=True):
        behind, cloud = offsets(axes)
        np.testing.assert_array_equal(behind, draws)
        np.testing.assert_array_equal(cloud, points)
        assert axes.get_xlabel() == "$a$"
        assert (axes.get_xlim(), axes.get_ylim()) == BOUNDS
    first_of_rows = [i % canvas.MAX_COLUMNS == 0 for i in range(num)]
    assert [axes.get_ylabel() == "$b$" for axes in panels] == first_of_rows
    columns = {axes.get_subplotspec().colspan.start for axes in panels}
    assert columns == set(range(min(num, canvas.MAX_COLUMNS)))


def test_long_names_of_variants_are_parted(figures, backdrop, rng):
    name = "ratio_ulsif:learning_rate=3e-3:kernel=rbf:select=true"
    clouds.sample_panels({name: rng.normal(size=(3, 2)), "kl": rng.normal(size=(3, 2))}, backdrop)
    long, short = (axes.get_title() for axes in visible(figures[0]))
    assert long == "ratio_ulsif:learning_rate=3e-3:\nkernel=rbf:select=true"
    assert short == "kl"


def test_densities_are_under_the_same_points(figures, draws):
    at = {f"density {i}": (0.4 * i - 1, 0.5 * i) for i in range(5)}
    backdrops = {name: Backdrop(BOUNDS, LABELS, peaked(place)) for name, place in at.items()}
    clouds.density_panels(backdrops, draws)
    panels = visible(figures[0])
    assert [axes.get_title() for axes in panels] == list(at)
    for axes, place in zip(panels, at.values(), strict=True):
        np.testing.assert_array_equal(offsets(axes), [draws])
        assert (axes.get_xlabel(), axes.get_ylabel()) == LABELS
        assert (axes.get_xlim(), axes.get_ylim()) == BOUNDS
        (levels,) = artists(axes, QuadContourSet)
        assert np.linalg.norm(levels.get_paths()[-1].vertices.mean(axis=0) - place) < 0.05


def test_a_density_is_shaded_by_its_share_of_the_maximum_and_an_energy_has_lines(figures, draws):
    place = (1.0, -0.5)
    energy = -peaked(place, 31, 21)
    density = Backdrop(BOUNDS, LABELS, peaked(place) + 500, energy=energy)
    clouds.sample_panels({"both": draws}, density)
    (axes,) = figures[0].axes
    shades, lines = artists(axes, QuadContourSet)
    assert shades.filled
    assert not lines.filled
    assert shades.levels[0] == pytest.approx(0.003)
    reach = np.linalg.norm(shades.get_paths()[0].vertices - place, axis=1).max()
    assert reach == pytest.approx(np.sqrt(-np.log(0.003) / 10), rel=0.04)
    drawn = zip(lines.levels, (path.vertices for path in lines.get_paths()), strict=True)
    values = {level: 10 * np.sum((line - place) ** 2, axis=1) for level, line in drawn if len(line)}
    assert len(values) >= 8
    for level, value in values.items():
        np.testing.assert_allclose(value, level, atol=0.2)


@pytest.fixture
def filmed(monkeypatch):
    """The texts, the topmost clouds and the arrows of each frame of a film, as it is drawn."""
    frames, whole = [], canvas.gif

    def record(figure, draw, num_frames):
        def noted(index):
            draw(index)
            texts = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
            points = [offsets(axes)[-1].copy() for axes in visible(figure) if offsets(axes)]
            arrows = [arrow for axes in figure.axes for arrow in artists(axes, Quiver)]
            fields = [np.c_[arrow.get_offsets(), arrow.U, arrow.V] for arrow in arrows]
            frames.append((texts, points, fields))

        return whole(figure, noted, num_frames)

    monkeypatch.setattr(canvas, "gif", record)
    return frames


def test_sets_of_points_move_over_their_density(filmed, rng):
    sets = {"kl": rng.normal(size=(2, 6, 2)), "mmd": rng.normal(size=(2, 4, 2))}
    backdrop = Backdrop(BOUNDS, LABELS, peaked((0, 0)))
    film = Image.open(io.BytesIO(clouds.evolution(sets, [0, 50], backdrop)))
    assert film.n_frames == 2
    for index, (texts, points, _) in enumerate(filmed):
        assert texts == [f"step {50 * index}", "kl", "mmd"]
        for got, name in zip(points, sets, strict=True):
            np.testing.assert_array_equal(got, sets[name][index])


def test_a_field_is_drawn_in_units_of_its_median_and_its_rms_is_told(filmed, rng):
    grid = rng.normal(size=(3, 2))
    arrows = np.array([[3.0, 4.0], [0.0, 1.0], [0.5, 0.0]])  # lengths 5, 1, 1/2
    frames = [FieldFrame(rng.normal(size=(6, 2)), grid + i, i * arrows) for i in (1, 0)]
    backdrop = Backdrop(BOUNDS, LABELS, peaked((0, 0)))
    film = Image.open(io.BytesIO(clouds.field_evolution(frames, [0, 9], backdrop, "gan_kl")))
    assert film.n_frames == 2
    (first, last) = filmed
    assert first[0] == ["", "gan_kl, step 0", f"field, rms {np.sqrt((25 + 1 + 0.25) / 3):.2g}"]
    assert last[0] == ["", "gan_kl, step 9", "field, rms 0"]
    for (_, points, fields), frame in zip(filmed, frames, strict=True):
        np.testing.assert_array_equal(points, [frame.samples])
        (field,) = fields
        np.testing.assert_array_equal(field[:, :2], frame.points)
        drawn = [[0.6, 0.8], [0, 1], [0.5, 0]] if frame is frames[0] else np.zeros((3, 2))
        np.testing.assert_allclose(field[:, 2:], drawn)  # the median is 1, and a length of 5 cut


def test_an_arrow_of_the_median_length_is_a_25th_of_the_axes(monkeypatch, rng):
    kept = []
    monkeypatch.setattr(
        canvas, "gif", lambda figure, draw, _: kept.append(figure) or draw(0) or b""
    )
    frame = FieldFrame(*rng.normal(size=(3, 4, 2)))
    clouds.field_evolution([frame], [0], Backdrop(BOUNDS, LABELS, peaked((0, 0))), "kl")
    samples, field = kept[0].axes
    (arrows,) = artists(field, Quiver)
    assert 1 / arrows.scale == pytest.approx(4 / 25)
    assert (arrows.angles, arrows.scale_units) == ("xy", "xy")
    assert (samples.get_xlabel(), samples.get_ylabel(), field.get_xlabel()) == ("$a$", "$b$", "$a$")
    assert (field.get_xlim(), field.get_ylim()) == BOUNDS
