"""The sheet of views can be opened and shows the views."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from e3jax import Operation, operation_set
from e3jax.errors import InputError
from e3jax.report import sheet


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
    path, figure = tmp_path / "figure.png", Figure()
    sheet.save_figure(path, figure)
    before = path.read_bytes()
    figure.suptitle("mathematics that does not parse: $\\frac$")
    with pytest.raises(ValueError, match="frac"):
        sheet.save_figure(path, figure)
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["views.jpg", "views", "views.png.txt", ".png"])
def test_a_figure_has_one_of_three_endings(tmp_path, name):
    with pytest.raises(InputError, match=r"has no ending of a figure: give it .png, .pdf or .svg"):
        sheet.save_figure(tmp_path / name, Figure())
    assert not list(tmp_path.iterdir())


def test_a_sheet_is_not_drawn_over_another_file(tmp_path):
    """Neither the default name's, nor one that is linked to."""
    image, few = (
        np.zeros((8, 8, 1), np.uint8),
        operation_set([Operation(), Operation(flip=True)], 8),
    )
    theirs, link = tmp_path / "photo.png", tmp_path / "views.png"
    Image.fromarray(image[..., 0]).save(theirs)
    link.symlink_to(theirs)
    before = theirs.read_bytes()
    for path in (theirs, link):
        with pytest.raises(InputError, match="was not written by e3jax"):
            sheet.plot_views(path, image, few)
    assert theirs.read_bytes() == before and link.is_symlink()


def test_the_same_figure_is_the_same_svg_and_no_setting_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in "ab":
        figure = Figure()
        figure.add_subplot().plot([1, 2], clip_on=True)
        figure.axes[0].set_title("title")
        sheet.save_figure(tmp_path / f"{name}.svg", figure)
    a, b = ((tmp_path / f"{name}.svg").read_text().split("</metadata>")[1] for name in "ab")
    assert a == b and dict(matplotlib.rcParams) == before
