"""What is kept of a picture's detail, and how it is said."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from e3jax.collection import Reader
from e3jax.collection.reading import read_each
from e3jax.evidence import EVIDENCE, Context, detail, facts as file_reasons
from e3jax.evidence.distances import references
from e3jax.images import facts
from e3jax.images.statistics import statistics


def scene(seed, side=200):
    """Smooth patches of colour with some grain."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(60, 190, (6, 6, 3), np.uint8))
    grain = random.normal(0, 20, (side, side, 3))
    return Image.fromarray(np.uint8((small.resize((side, side)) + grain).clip(0, 255)))


def content(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def vectors(pictures):
    read = read_each([content(picture) for picture in pictures], Reader())
    return np.stack([each.facts[facts.DETAIL] for each in read])


def test_numpy_and_jax_agree_on_the_statistics_of_an_image():
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    np.testing.assert_allclose(statistics(image, 4), statistics(image, 4, jnp), atol=1e-3)


def test_detail_is_of_more_pixels_than_the_image_has_that_is_trained_on():
    fine = np.zeros((128, 128, 3), np.uint8)
    fine[:, ::2] = 255
    [read] = read_each([content(Image.fromarray(fine))], Reader())
    assert np.ptp(read.pixels) < 20  # at 32 pixels a plain grey
    spectrum = read.facts[facts.DETAIL][:36].reshape(6, 6)
    assert np.unravel_index(spectrum.argmax(), (6, 6))[0] == 5
    np.testing.assert_array_equal(
        read.facts[: facts.FILE.stop], facts.file_facts(content(Image.fromarray(fine))).vector()
    )


def test_an_array_or_an_open_picture_has_no_facts():
    of = read_each([np.asarray(scene(0)), scene(0)], Reader())
    assert [each.facts for each in of] == [None, None]


def test_a_file_of_16_bits_has_the_detail_of_its_8_bits():
    values = np.random.default_rng(0).integers(0, 256, (128, 128))
    deep, plain = (
        Image.fromarray((values * scale).astype(d)) for scale, d in ((257, "u2"), (1, "u1"))
    )
    ours, expected = (
        r.facts[facts.DETAIL] for r in read_each([content(deep), content(plain)], Reader())
    )
    np.testing.assert_allclose(ours, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda picture: picture, ""),
        (lambda picture: picture.point(lambda v: v // 3), "darker, less contrast"),
        (lambda picture: picture.point(lambda v: min(v + 60, 255)), "brighter"),
        (lambda picture: picture.convert("L").convert("RGB"), "greyer"),
        (lambda picture: picture.filter(ImageFilter.GaussianBlur(3)), "blurrier"),
        (lambda picture: picture.filter(ImageFilter.UnsharpMask(2, 300)), "sharper"),
    ],
)
def test_what_a_picture_looks_like_is_said_beside_the_others(change, word):
    model = references(vectors(map(scene, range(100))), whitened=True)
    [reason] = detail.reasons(model, vectors([change(scene(103))]))
    assert word in reason and bool(word) == bool(reason)
    assert not word or reason.endswith(("than 98 % of the pictures", "than 99 % of the pictures"))


def test_evidence_says_it_of_all_that_is_kept_of_files():
    """Each kind of evidence takes its columns of them: facts of the file, and detail."""
    pictures = [*map(scene, range(100)), scene(103).filter(ImageFilter.GaussianBlur(3))]
    kept = np.stack([read.facts for read in read_each(list(map(content, pictures)), Reader())])
    parts = {
        "detail": (detail.reasons, facts.DETAIL),
        "facts": (file_reasons.reasons, facts.FILE),
    }
    for name, (in_words, columns) in parts.items():
        kind = EVIDENCE[name]
        fit = kind.fit(jax.random.key(0), kept, Context())
        said = kind.reasons(fit.model, kept)
        assert said == in_words(fit.model, kept[:, columns])
        assert ("blurrier" in said[-1]) == (name == "detail")


def test_nothing_is_said_of_what_all_pictures_share():
    grey = [scene(seed).convert("L") for seed in range(100)]
    model = references(vectors(grey), whitened=True)
    said = detail.reasons(model, vectors(grey))
    assert not any("grey" in reason or "colour" in reason for reason in said)
    assert 0 < sum(map(bool, said)) < 20
