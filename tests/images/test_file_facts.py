"""Facts of files: what their headers say, and how their vectors compare."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from e3jax.images import facts
from e3jax.images.facts import Facts, file_facts


def content(format, size=(40, 20), **options):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_files_header_tells_its_facts(tmp_path, format):
    of = content(format)
    (tmp_path / "x").write_bytes(of)
    expected = Facts(40, 20, len(of), False, format)
    assert file_facts(of) == file_facts(tmp_path / "x") == expected
    vector = expected.vector()
    np.testing.assert_allclose(vector[:4], np.log2([40, 20, 2, len(of) / 800]), rtol=1e-6)
    assert vector[4] == 0 and vector[5:].sum() == 1 and len(vector) == facts.FILE.stop


def test_a_photo_held_upright_is_high():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = file_facts(content("JPEG", exif=exif))
    assert (turned.width, turned.height, turned.has_exif) == (20, 40, True)


@pytest.mark.parametrize("damaged", [b"", b"no image", content("PNG")[:20]])
def test_what_has_no_header_has_a_size(damaged):
    assert file_facts(damaged) == Facts(size=max(len(damaged), 1))
    assert np.isfinite(file_facts(damaged).vector()).all()


def test_only_the_header_is_read(monkeypatch):
    large = content("PNG", (900, 900))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert file_facts(large).width == 900
