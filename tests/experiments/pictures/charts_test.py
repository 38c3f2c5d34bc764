"""What stands on the charts, read from their artists: titles, axes, legends, and the data given."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from experiments.pictures import charts
from experiments.pictures.charts import CurvePanel

STEPS = np.array([10, 20, 40])


def only(figures, encoded):
    """Returns the one figure that was drawn, and its visible panels."""
    (figure,) = figures
    assert encoded == b"a picture"
    return figure, [axes for axes in figure.axes if axes.get_visible()]


def legend(drawn):
    """Returns the entries of the legend of axes, or of a figure."""
    found = drawn.legends[0] if isinstance(drawn, Figure) else drawn.get_legend()
    return [text.get_text() for text in found.get_texts()]


def band(collection):
    """Returns abscissae, lower and upper ends of what `fill_between` has filled."""
    corners = collection.get_paths()[0].vertices
    x = np.unique(corners[:, 0])
    ends = [corners[corners[:, 0] == one, 1] for one in x]
    return x, [end.min() for end in ends], [end.max() for end in ends]


def test_learning_curves_are_the_records_a_metric_a_panel(figures):
    history = [
        {"step": 1, "loss": 5.0, "rate": -1.0},
        {"step": 2, "loss": 0.1},
        {"step": 4, "loss": 0.2, "rate": 90.0, "rms": 3.0},
        {"step": 5, "late": 1.0},
    ]
    _, panels = only(figures, charts.learning_curves(history))
    assert [axes.get_title() for axes in panels] == ["loss", "rate", "rms", "late"]
    assert {axes.get_xlabel() for axes in panels} == {"step"}
    drawn = [axes.lines[0].get_xydata().tolist() for axes in panels]
    assert drawn == [[[1, 5], [2, 0.1], [4, 0.2]], [[1, -1], [4, 90]], [[4, 3]], [[5, 1]]]
    assert [axes.get_yscale() for axes in panels] == ["log", "linear", "linear", "linear"]
    assert panels[0].lines[0].get_marker() == "."


def test_learning_curves_have_the_floor_of_real_samples_and_say_so(figures):
    history = [{"step": step, "nearest_l1": 30.0 - step, "loss": 1.0} for step in range(3)]
    figure, (distance, loss) = only(figures, charts.learning_curves(history, {"nearest_l1": 18.0}))
    floor = distance.lines[1]
    assert set(floor.get_ydata()) == {18.0}
    assert floor.get_linestyle() == "--"
    assert len(loss.lines) == 1
    assert legend(figure) == ["real samples"]
    charts.learning_curves(history)
    assert figures[1].legends == []
    assert [len(axes.lines) for axes in figures[1].axes[:2]] == [1, 1]


def test_a_chart_is_a_png_of_its_panels():
    history = [{"step": step, "loss": 1.0, "rms": 2.0} for step in range(3)]
    picture = Image.open(io.BytesIO(charts.learning_curves(history)))
    assert picture.format == "PNG"
    assert picture.size == (round(2 * 4.5 * 110), round(3.2 * 110))


def test_what_differs_by_rounding_is_drawn_as_constant(figures):
    history = [{"step": step, "rms": 1 + 1e-7 * (step % 3), "mmd": 1 + step} for step in range(9)]
    _, (flat, other) = only(figures, charts.learning_curves(history))
    assert flat.get_ylim() == pytest.approx((0.9, 1.1))
    assert other.get_ylim()[1] > 9
    charts.learning_curves([{"step": 1, "rms": 1.0}, {"step": 2, "rms": np.inf}])


def test_long_learning_curves_have_no_dots(figures):
    history = [{"step": step, "loss": 1.0 + step} for step in range(40)]
    _, (panel,) = only(figures, charts.learning_curves(history))
    assert panel.lines[0].get_marker() == "None"


@pytest.fixture
def compared(figures):
    """Two metrics of two methods, the second metric with a floor, as a figure and its panels."""
    curves = {
        metric: {
            "kl": (STEPS, base + np.array([[3.0, 2.0, 1.0], [5.0, 3.0, 1.5]])),
            "mmd": (STEPS[:2], base + np.array([[9.0, 8.0]])),
        }
        for metric, base in (("test_mmd", 0.0), ("nearest_l1", 20.0))
    }
    encoded = charts.comparison(curves, {"kl": 0.5, "mmd": 0.25}, {"nearest_l1": 18.0}, "digits")
    return only(figures, encoded)


def test_a_comparison_is_over_steps_above_and_over_time_below(compared):
    figure, panels = compared
    assert figure.get_suptitle() == "digits"
    assert [axes.get_title() for axes in panels] == 2 * ["test_mmd", "nearest_l1"]
    assert [axes.get_xlabel() for axes in panels] == 2 * ["step"] + 2 * ["training time (s)"]
    for axes, base in zip(panels, (0, 20, 0, 20), strict=True):
        kl, mmd = axes.lines[:2]
        np.testing.assert_allclose(kl.get_ydata(), base + np.array([4.0, 2.5, 1.25]))
        np.testing.assert_allclose(mmd.get_ydata(), base + np.array([9.0, 8.0]))
        over_time = axes.get_xlabel() != "step"
        np.testing.assert_allclose(kl.get_xdata(), STEPS * (0.5 if over_time else 1))
        np.testing.assert_allclose(mmd.get_xdata(), STEPS[:2] * (0.25 if over_time else 1))
        x, low, high = band(axes.collections[0])
        np.testing.assert_allclose(x, kl.get_xdata())
        np.testing.assert_allclose(low, base + np.array([3.0, 2.0, 1.0]))
        np.testing.assert_allclose(high, base + np.array([5.0, 3.0, 1.5]))


def test_a_comparison_has_the_floor_of_real_images_and_says_so(compared):
    figure, panels = compared
    assert [len(axes.lines) for axes in panels] == [2, 3, 2, 3]
    for axes in (panels[1], panels[3]):
        floor = axes.lines[2]
        assert set(floor.get_ydata()) == {18.0}
        assert floor.get_linestyle() == "--"
    assert legend(figure) == ["kl", "mmd", "real samples"]


def test_a_comparison_without_a_floor_names_none(figures):
    curves = {"test_mmd": {"kl": (STEPS, np.ones((1, 3)))}}
    figure, panels = only(figures, charts.comparison(curves, {"kl": 1.0}, {}, "ring"))
    assert legend(figure) == ["kl"]
    assert [len(axes.lines) for axes in panels] == [1, 1]


def test_a_comparison_needs_the_time_of_every_method():
    with pytest.raises(KeyError, match="kl"):
        charts.comparison({"m": {"kl": (STEPS, np.ones((1, 3)))}}, {}, {}, "ring")


def test_curve_panels_draw_means_bands_and_references(figures):
    values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 9.0]])
    curves = {"score": (STEPS, values), "svgd": (STEPS, 2 * values)}
    rows = [
        [CurvePanel("KL (nats)", "step", curves, {"svgd": 0.5, "exact": 0.1, "log 2": 0.7})],
        [CurvePanel("bound", "variance", {"svgd": curves["svgd"]}, {}, "log", "log")],
    ]
    _, (panel, other) = only(figures, charts.curve_panels(rows))
    assert (panel.get_title(), panel.get_xlabel()) == ("KL (nats)", "step")
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "linear")
    assert (other.get_title(), other.get_xlabel()) == ("bound", "variance")
    assert (other.get_xscale(), other.get_yscale()) == ("log", "log")
    score, svgd, own, exact, log2 = panel.lines
    np.testing.assert_allclose(score.get_xydata().T, [STEPS, [2, 2, 6]])
    np.testing.assert_allclose(svgd.get_ydata(), [4, 4, 12])
    assert [band(one)[1:] for one in panel.collections] == [
        ([1, 2, 3], [3, 2, 9]),
        ([2, 4, 6], [6, 4, 18]),
    ]
    assert [set(line.get_ydata()) for line in (own, exact, log2)] == [{0.5}, {0.1}, {0.7}]
    assert own.get_color() == svgd.get_color() != score.get_color()
    assert to_rgba(exact.get_color()) == to_rgba(log2.get_color()) == to_rgba("0.4")
    assert own.get_linestyle() == "--"
    assert exact.get_linestyle() != log2.get_linestyle()
    assert legend(panel) == ["score", "svgd", "exact", "log 2"]


def test_curves_of_one_colour_differ_in_style_and_a_long_legend_stands_outside(figures):
    curves = {str(n): (STEPS, np.ones((1, 3))) for n in range(11)}
    few = {name: curves[name] for name in list(curves)[:6]}
    rows = [[CurvePanel("many", "step", curves, {}), CurvePanel("few", "step", few, {})]]
    _, (many, inside) = only(figures, charts.curve_panels(rows))
    assert many.lines[0].get_color() == many.lines[10].get_color()
    assert [many.lines[n].get_linestyle() for n in (0, 9, 10)] == ["-", "-", "-."]
    many.figure.draw_without_rendering()
    left = [axes.get_legend().get_window_extent().x0 for axes in (many, inside)]
    right = [axes.get_window_extent().x1 for axes in (many, inside)]
    assert left[0] > right[0]
    assert left[1] < right[1]


def test_rows_of_panels_are_equally_long():
    panel = CurvePanel("a", "step", {"kl": (STEPS, np.ones((1, 3)))}, {})
    with pytest.raises(ValueError, match="zip"):
        charts.curve_panels([[panel, panel], [panel]])


def test_histograms_are_densities_beside_others(figures):
    values = np.array([0.0, 0.0, 1.0, -10.0, 300.0, -400.0, 11.0, 12.0])
    flat = {"flat": lambda x: np.full(len(x), 0.25)}
    rows = [{"one": (values, flat)}, {"two": (values[:2], flat)}]
    _, (one, two) = only(figures, charts.histograms(rows, "coordinate", 20.0))
    assert [axes.get_title() for axes in (one, two)] == ["one; 25.0% beyond", "two; 0.0% beyond"]
    assert one.get_xlabel() == "coordinate"
    assert one.get_yscale() == "log"
    assert legend(one) == ["flat"]
    heights, edges, _ = one.patches[0].get_data()
    assert (edges[0], edges[-1]) == (-20.0, 20.0)
    assert np.sum(heights * np.diff(edges)) == pytest.approx(6 / 8)
    at = {x: heights[np.searchsorted(edges, x) - 1] * (edges[1] - edges[0]) for x in (0.05, 11.0)}
    assert at == {0.05: pytest.approx(2 / 8), 11.0: pytest.approx(1 / 8)}
    x, y = one.lines[0].get_xydata().T
    assert (x[0], x[-1]) == (-20.0, 20.0)
    assert set(y) == {0.25}
    low, high = one.get_ylim()
    assert low < heights[heights > 0].min()
    assert heights.max() < high


def test_histograms_of_nothing_within_the_limit_are_drawn(figures):
    rows = [{"far": (np.array([7.0]), {"flat": lambda x: np.ones(len(x))})}]
    _, (panel,) = only(figures, charts.histograms(rows, "coordinate", 2.0))
    assert panel.get_title() == "far; 100.0% beyond"
