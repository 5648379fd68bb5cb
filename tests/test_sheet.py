"""The sheet of views can be opened and shows the views."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from e3jax import Operation, operation_set, sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_of_views_is_drawn_for_grey_and_colour(tmp_path, channels):
    image = np.full((8, 8, channels), 200, np.uint8)
    image[2:6, 2:6, 1:] = 0
    operations = operation_set([Operation(), Operation(angle=30), Operation(flip=True)], 8)
    sheet.plot_views(tmp_path / "views.png", image, operations)
    with Image.open(tmp_path / "views.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 100
        pixels = np.asarray(drawn.convert("RGB"), int).reshape(-1, 3)
    # What was put in, and the grey outside a rotated image.
    for colour in [(128,) * 3, (200,) * 3, *([(200, 0, 0)] if channels == 3 else [])]:
        assert (np.abs(pixels - colour) <= 2).all(axis=1).sum() > 50, colour


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = Figure()
    figure.suptitle("mathematics that does not parse: $\\frac$")
    with pytest.raises(ValueError):
        sheet.save_figure(path, figure)
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"old"


def test_the_same_figure_is_the_same_svg_and_no_setting_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in "ab":
        figure = Figure()
        figure.add_subplot().plot([1, 2], clip_on=True)
        figure.axes[0].set_title("title")
        sheet.save_figure(tmp_path / f"{name}.svg", figure)
    a, b = ((tmp_path / f"{name}.svg").read_text().split("</metadata>")[1] for name in "ab")
    assert a == b and dict(matplotlib.rcParams) == before
