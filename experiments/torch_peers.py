"""Two PyTorch programs of the same method, to hold e3jax's speed against.

``Straightforward`` works as the original program does: SciPy and NumPy make the views of all images
on the host before anything else, a DataLoader shuffles them. ``Tuned`` is what PyTorch can do for
the same numbers: a uint8 bank and e3jax's tables on the device, views born in the step,
channels_last, fused optimizers, torch.compile. Legend: ``n`` images, ``k`` operations, ``b`` batch,
``p = h * w`` pixels, ``c`` channels.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import scipy.ndimage
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from e3jax import operations, training

# Images whose views go through the network together. On a CPU few, so that they stay in cache.
_SCORED_AT_ONCE = {"cpu": 1, "cuda": 64}
_PAD = 2  # spline coefficients that e3jax's tables expect around an image


class Block(nn.Module):
    """Pre-activation basic block; where channels change, the shortcut is a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = functional.relu(self.norm1(x))
        y = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """The network of :class:`e3jax.networks.WideResNet`: float [b, c, h, w] -> logits [b, k].

    BatchNorm2d's defaults (epsilon 1e-5, momentum 0.1) and the dense layer's are the original's.
    """

    def __init__(self, name: str, num_outputs: int, channels: int):
        super().__init__()
        depth, width = map(int, re.fullmatch(r"wrn-(\d+)-(\d+)", name).groups())
        self.stem = _conv(channels, 16, 3, 1)
        blocks, inputs = [], 16
        for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                blocks.append(Block(inputs, outputs, 2 if group and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_outputs)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def make_optimizer(parameters, config: training.TrainConfig, **options) -> torch.optim.Optimizer:
    """The optimizer of :func:`e3jax.training.make_optimizer`."""
    options |= {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **options)
    return torch.optim.Adam(parameters, eps=1e-7, **options)


def make_schedule(optimizer, config: training.TrainConfig) -> Callable[[], None]:
    """What to call after a step: optax's one-cycle schedule is PyTorch's, or nothing."""
    if config.schedule == "constant":
        return lambda: None
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.steps, cycle_momentum=False
    )
    # It raises after its last step; a measurement may go on with the last rate.
    return lambda: schedule.step() if schedule.last_epoch < config.steps - 1 else None


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """[b, k] -> [b], from the log-softmax, so that no underflow makes a NaN."""
    log_p = functional.log_softmax(logits.float(), -1)
    return (log_p.exp() * log_p).sum(-1)


# The straightforward program.


def host_views(image: np.ndarray) -> np.ndarray:
    """All 111 views of a float image [h, w, c] -> [k, h, w, c], as the original makes them."""
    side = len(image)
    step = side // 4
    shifts = (0, -step, step)
    views = []
    for flip, row, column in itertools.product((False, True), shifts, shifts):
        moved = _shift(image[:, ::-1] if flip else image, row, column)
        views += [np.rot90(moved, turns) for turns in range(4)]
    for flip in (False, True):
        flipped = image[:, ::-1] if flip else image
        views += [_rotate(flipped, angle) for angle in (30, 60, 120, 150, 210, 240, 300, 330)]
    half = side // 2
    patches = [image[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
    for a, b, c, d in list(itertools.permutations(patches))[1:]:
        views.append(np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0))
    return np.stack(views).astype(np.float32)


def _shift(image: np.ndarray, row: int, column: int) -> np.ndarray:
    side = len(image)
    padded = np.pad(image, [(abs(row),) * 2, (abs(column),) * 2, (0, 0)], mode="symmetric")
    row, column = abs(row) + row, abs(column) + column
    return padded[row : row + side, column : column + side]


def _rotate(image: np.ndarray, angle: float) -> np.ndarray:
    canvas, side = scipy.ndimage.rotate(image, angle), len(image)
    row, column = ((size - side) // 2 for size in canvas.shape[:2])
    return canvas[row : row + side, column : column + side]


class Straightforward:
    """Views of all images in memory, a DataLoader, plain eager PyTorch.

    Attributes:
      views: float32 [n, k, c, h, w] on the host.
    """

    def __init__(self, images: np.ndarray, config: training.TrainConfig, device: str):
        self.config, self.device = config, torch.device(device)
        n, h, w, c = images.shape
        k = len(operations.paper_operations())
        # Filled in place: stacking at the end would hold all views twice.
        self.views = np.empty((n, k, c, h, w), np.float32)
        for i, image in enumerate(images):
            views = host_views(image.astype(np.float32) * np.float32(2 / 255) - 1)
            self.views[i] = views.transpose(0, 3, 1, 2)
        self.network = WideResNet(config.network, k, c).to(self.device)

    def _loader(self, batch: int, shuffle: bool) -> DataLoader:
        n, k = self.views.shape[:2]
        views = torch.from_numpy(self.views).flatten(0, 1)
        labels = torch.arange(k).repeat(n)
        # Worker processes would only copy what is in memory already: with them it is slower.
        return DataLoader(TensorDataset(views, labels), batch, shuffle=shuffle)

    def train(self) -> None:
        n, k = self.views.shape[:2]
        config, left = self.config, self.config.num_steps(n, k)
        optimizer = make_optimizer(self.network.parameters(), config)
        schedule = make_schedule(optimizer, config)
        loader = self._loader(config.batch_size, shuffle=True)
        self.network.train()
        while left:
            for views, labels in itertools.islice(loader, left):
                logits = self.network(views.to(self.device))
                loss = functional.cross_entropy(logits, labels.to(self.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule()
                left -= 1

    def score(self) -> np.ndarray:
        """NE of every image, [n]."""
        n, k = self.views.shape[:2]
        self.network.eval()
        with torch.no_grad():
            scores = [
                negative_entropy(self.network(views.to(self.device))).mean().item()
                for views, _ in self._loader(k, shuffle=False)
            ]
        return np.array(scores, np.float32)


# The tuned program.


class DeviceViews(nn.Module):
    """e3jax's operations by its tables: views of (image, label) pairs from a uint8 bank.

    Args:
      operation_set: as e3jax compiled it.
      only_rotated: run the spline on rotated views alone. Their number is then needed on the host:
        free on a CPU, a wait on an accelerator, which does all views instead.
    """

    def __init__(self, operation_set: operations.OperationSet, only_rotated: bool):
        super().__init__()
        self.side, self.only_rotated = operation_set.side, only_rotated
        tables = {
            name: torch.from_numpy(np.array(getattr(operation_set, name)))
            for name in ("gather", "rotation", "tap", "row_weight", "column_weight", "prefilter")
        }
        self.register_buffer("gather", tables["gather"].long())
        self.register_buffer("rotation", tables["rotation"].long())
        # Mirrored coefficients around the image, by repeating the prefilter's rows.
        rows = np.pad(np.arange(self.side), _PAD, mode="reflect")
        self.register_buffer("prefilter", tables["prefilter"][rows])
        width = self.side + 2 * _PAD
        offsets = torch.arange(4)[:, None] * width + torch.arange(4)
        self.register_buffer("taps", tables["tap"].long()[:, None] + offsets.view(1, 16, 1))
        weights = tables["row_weight"][..., :, None] * tables["column_weight"][..., None, :]
        self.register_buffer("weights", weights.flatten(-2).mT.contiguous())

    def forward(self, bank: torch.Tensor, image: torch.Tensor, label: torch.Tensor):
        """uint8 [n * p, c], int [b], int [b] -> float [b, c, h, w], channels_last in memory."""
        p, c = self.side**2, bank.shape[1]
        pixels = bank[(image * p)[:, None] + self.gather[label]]
        pixels = pixels.float() * (2 / 255) - 1
        rotation = self.rotation[label]
        if self.only_rotated:
            rows = rotation.nonzero().squeeze(1)
            pixels[rows] = self._rotate(pixels[rows], rotation[rows])
        else:
            rotated = (rotation > 0)[:, None, None]
            pixels = torch.where(rotated, self._rotate(pixels, rotation), pixels)
        views = pixels.reshape(-1, self.side, self.side, c).permute(0, 3, 1, 2)
        return views.contiguous(memory_format=torch.channels_last)

    def _rotate(self, pixels: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        b, p, c = pixels.shape
        square = pixels.view(b, self.side, self.side, c).permute(0, 3, 1, 2)
        # Bfloat16 would show in the views: autocast must not reach this product.
        with torch.autocast(pixels.device.type, enabled=False):
            source = (self.prefilter @ square @ self.prefilter.mT).flatten(2)
        taps, weights = self.taps[rotation], self.weights[rotation]
        view = torch.zeros(b, c, p, device=pixels.device)
        for i in range(16):
            tap = taps[:, i, None].expand(-1, c, -1)
            view = view + weights[:, i, None] * source.gather(2, tap)
        return view.mT


class Tuned:
    """The method on one device: nothing waits for the host inside a chunk of steps.

    Args:
      images: uint8 [n, h, w, c].
      config: as e3jax's; ``precision="bfloat16"`` is autocast.
      operation_set: e3jax's.
      device: "cpu" or "cuda".
      compiled: use torch.compile.
    """

    def __init__(
        self,
        images: np.ndarray,
        config: training.TrainConfig,
        operation_set: operations.OperationSet,
        device: str,
        compiled: bool,
    ):
        self.config, self.device, self.k = config, torch.device(device), len(operation_set)
        self.n, channels = len(images), images.shape[-1]
        bank = torch.from_numpy(images.reshape(-1, channels))
        self.bank = bank.to(self.device)
        self.views = DeviceViews(operation_set, device == "cpu").to(self.device)
        network = WideResNet(config.network, self.k, channels).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.network.parameters(), config, fused=True)
        self.schedule = make_schedule(self.optimizer, config)
        self.loss = torch.zeros((), device=self.device)
        self._order = self._batches()
        self._loss, self._scores = self._batch_loss, self._batch_scores
        self.make_views = self.views
        if compiled:
            mode = "max-autotune-no-cudagraphs" if device == "cuda" else "default"
            self._loss = torch.compile(self._loss, mode=mode)
            self._scores = torch.compile(self._scores, mode=mode)
            self.make_views = torch.compile(self.views, mode=mode)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _batches(self) -> Iterator[torch.Tensor]:
        """Pairs image * k + label, each once an epoch, in a new random order each; never ends."""
        size, total = self.config.batch_size, self.n * self.k
        kind = torch.int32 if total < 2**31 else torch.int64
        left = torch.empty(0, dtype=kind, device=self.device)
        while True:
            epoch = torch.randperm(total, dtype=kind, device=self.device)
            # What an epoch leaves over begins the next batch, as in e3jax.
            left = torch.cat([left, epoch])
            full = len(left) // size * size
            yield from left[:full].split(size)
            left = left[full:].clone()

    def _batch_loss(self, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return functional.cross_entropy(self.network(views).float(), labels)

    def _batch_scores(self, views: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return negative_entropy(self.network(views)).view(-1, self.k).mean(1)

    def train(self, steps: int) -> None:
        """Steps from where the last call stopped; ``loss`` sums theirs up on the device."""
        self.network.train()
        for pairs in itertools.islice(self._order, steps):
            labels = pairs.long() % self.k
            views = self.make_views(self.bank, pairs.long() // self.k, labels)
            loss = self._loss(views, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule()
            self.loss += loss.detach()

    def score(self, count: int) -> np.ndarray:
        """NE of the first ``count`` images, [count]."""
        self.network.eval()
        scores = []
        at_once = _SCORED_AT_ONCE[self.device.type]
        labels = torch.arange(self.k, device=self.device).repeat(at_once)
        with torch.inference_mode():
            for start in range(0, math.ceil(count / at_once) * at_once, at_once):
                image = torch.arange(start, start + at_once, device=self.device) % self.n
                views = self.make_views(self.bank, image.repeat_interleave(self.k), labels)
                scores.append(self._scores(views))
            # One copy at the end: the device never waits for the host between batches.
            return torch.cat(scores)[:count].float().cpu().numpy()

    def random_views(self, count: int) -> torch.Tensor:
        """Views of ``count`` random (image, label) pairs."""
        with torch.inference_mode():
            image = torch.randint(self.n, (count,), device=self.device)
            label = torch.randint(self.k, (count,), device=self.device)
            return self.make_views(self.bank, image, label)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
