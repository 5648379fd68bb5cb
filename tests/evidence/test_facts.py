"""What is unusual about a file, in words."""

import numpy as np
import pytest

from e3jax.evidence import facts
from e3jax.evidence.distances import references
from e3jax.images.facts import Facts

USUAL = Facts(640, 480, 100_000, True, "JPEG")


def reasons(*files, usual=(USUAL,) * 100):
    model = references(np.stack([each.vector() for each in usual]), whitened=False)
    return facts.reasons(model, np.stack([each.vector() for each in files]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"size": 101_000}, "0.33 bytes per pixel, most 0.33 to 0.33"),
        ({"width": 480, "height": 640}, "width : height 0.75, of most 1.33"),
        (
            {"width": 320, "height": 240, "size": 25_000},
            "320 × 240 pixels, most about 640 × 480",
        ),
        ({"format": "PNG"}, "PNG, most are JPEG"),
        ({"format": "XYZ"}, "another format, most are JPEG"),
        ({"has_exif": False}, "no EXIF data, most have some"),
        ({"has_exif": False, "format": "GIF"}, "GIF, most are JPEG, no EXIF data, most have some"),
    ],
)
def test_what_is_rare_is_named_beside_what_is_usual(change, reason):
    assert reasons(USUAL._replace(**change)) == [reason]


def test_what_differs_among_all_is_not_unusual():
    random = np.random.default_rng(0)
    sizes = random.integers(100, 5000, (200, 2)).tolist()
    files = [
        Facts(w, h, int(w * h * random.uniform(0.1, 3)), i % 2 == 0, ("JPEG", "PNG")[i % 2])
        for i, (w, h) in enumerate(sizes)
    ]
    said = reasons(*files, usual=files)
    assert not any("EXIF" in text or "most are" in text for text in said)
    assert 0 < sum("bytes per pixel" in text for text in said) <= 12


def test_a_vector_gives_its_facts_back():
    assert Facts.of_vector(USUAL.vector()) == USUAL
