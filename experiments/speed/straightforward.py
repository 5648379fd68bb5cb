"""The method as the original program does it: all views first, on the host, then plain PyTorch."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import scipy.ndimage
import torch
from speed.torch_program import Program, TorchBackend
from torch.utils.data import DataLoader, TensorDataset

from e3jax import training


def host_views(image: np.ndarray) -> np.ndarray:
    """All 111 views of a float image [h, w, c] -> [k, h, w, c], by NumPy and SciPy."""
    side = len(image)
    step, half = side // 4, side // 2
    views = []
    for flip, row, column in itertools.product((1, -1), (0, -step, step), (0, -step, step)):
        moved = _shift(image[:, ::flip], row, column)
        views += [np.rot90(moved, turns) for turns in range(4)]
    for flip, angle in itertools.product((1, -1), (30, 60, 120, 150, 210, 240, 300, 330)):
        canvas = scipy.ndimage.rotate(image[:, ::flip], angle)
        row, column = ((size - side) // 2 for size in canvas.shape[:2])
        views.append(canvas[row : row + side, column : column + side])
    patches = [image[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
    for a, b, c, d in list(itertools.permutations(patches))[1:]:
        views.append(np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0))
    return np.stack(views).astype(np.float32)


def _shift(image: np.ndarray, row: int, column: int) -> np.ndarray:
    side = len(image)
    padded = np.pad(image, [(abs(row),) * 2, (abs(column),) * 2, (0, 0)], mode="symmetric")
    row, column = abs(row) + row, abs(column) + column
    return padded[row : row + side, column : column + side]


class StraightforwardProgram(Program):
    """Views of all images in memory, float32 [n, k, c, h, w] on the host, and a DataLoader."""

    def __init__(self, images: np.ndarray, config: training.TrainConfig, device: str):
        n, h, w, c = images.shape
        # Filled in place: stacking at the end would hold all views twice.
        self.views = np.empty((n, config.k, c, h, w), np.float32)
        for i, image in enumerate(images):
            views = host_views(image.astype(np.float32) * np.float32(2 / 255) - 1)
            self.views[i] = views.transpose(0, 3, 1, 2)
        super().__init__(images, config, device)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        views, labels = torch.from_numpy(self.views).flatten(0, 1), torch.arange(self.k)
        # Worker processes would only copy what is in memory already: with them it is slower.
        data = TensorDataset(views, labels.repeat(self.n))
        loader = DataLoader(data, self.config.batch_size, shuffle=True)
        while True:
            yield from loader

    def views_of(self, start: int, count: int) -> torch.Tensor:
        return torch.from_numpy(self.views[start : start + count]).flatten(0, 1)


class Straightforward(TorchBackend):
    """The program above, timed from images to scores."""

    def pipeline(self) -> dict:
        start = time.perf_counter()
        program = StraightforwardProgram(self.images, self.config, self.device)
        made = time.perf_counter()
        program.train(self.config.num_steps(program.n))
        trained = time.perf_counter()
        program.score(program.n)
        end = time.perf_counter()
        return {
            "seconds": end - start,
            "views_seconds": made - start,
            "train_seconds": trained - made,
            "score_seconds": end - trained,
            "views_bytes": program.views.nbytes,
        }
