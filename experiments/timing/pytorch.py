"""Two PyTorch programs of the same method, as backends, to hold e3jax's speed against.

``Straightforward`` works as the original program does: NumPy and SciPy make the views of all images
on the host before anything else, and a DataLoader shuffles them. ``Tuned`` is what PyTorch can do
for the same numbers: a uint8 bank and e3jax's tables on the device, views generated inside the
step, channels_last, fused optimizers, torch.compile. Legend: ``n`` images, ``k`` operations, ``b``
batch, ``p = h * w`` pixels, ``c`` channels.
"""

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import scipy.ndimage
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from e3jax import operations, training
from timing.backends import VIEWS_PER_CALL, Backend, timed

_PAD = 2  # spline coefficients that e3jax's tables expect around an image


# --- What both share --------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-activation basic block; where channels change, the shortcut is a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None
        first, second = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3, 1)
        self.residual = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activate(x)
        residual = self.residual(activated)
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def wide_resnet(name: str, num_outputs: int, channels: int) -> nn.Sequential:
    """The network of :class:`e3jax.networks.WideResNet`: float [b, c, h, w] -> logits [b, k].

    BatchNorm2d's defaults (epsilon 1e-5, momentum 0.1) and the dense layer's are the original's.
    """
    strided, depth, width = re.fullmatch(r"(p?)wrn-(\d+)-(\d+)", name).groups()
    depth, width, stem = int(depth), int(width), (5, 2) if strided else (3, 1)
    layers, inputs = [_conv(channels, 16, *stem)], 16
    for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            layers.append(Block(inputs, outputs, 2 if group and not block else 1))
            inputs = outputs
    head = nn.Linear(inputs, num_outputs)
    nn.init.zeros_(head.bias)
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head]
    return nn.Sequential(*layers)


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def make_optimizer(config: training.TrainConfig, parameters, **how) -> torch.optim.Optimizer:
    """As :func:`e3jax.training.make_optimizer` at a constant rate."""
    how |= {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **how)
    return torch.optim.Adam(parameters, eps=1e-7, **how)


class TorchBackend(Backend):
    """The method on the first GPU, or else on the CPU, for subclasses that make the views.

    They provide ``batches()``, an endless iterator over shuffled views [b, c, h, w] and their
    operations [b], and ``views_of(start, count)``, all views of some images [count * k, c, h, w].

    Args:
      config: fields of a TrainConfig.
      shape: of the images.
    """

    scored_together, bfloat16 = 1, False

    def __init__(self, config: dict, shape: list[int]):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(self.device == "cpu", shape)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.config = training.TrainConfig(**config)
        self.k, self.num_steps = self.config.k, self.config.num_steps(self.n)

    def hello(self) -> dict:
        platform = "cpu" if self.on_cpu else "gpu"
        return {"platform": platform, "version": f" torch={torch.__version__}"}

    def start(self, **how) -> None:
        """New weights; ``how`` the optimizer is computed."""
        config = self.config
        self.network = wide_resnet(config.network, self.k, self.channels).to(self.device)
        self.optimizer = make_optimizer(config, self.network.parameters(), **how)
        self.schedule_steps = iter(())
        if config.schedule == "onecycle":  # optax's schedule is PyTorch's
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, config.learning_rate, self.num_steps, cycle_momentum=False
            )
            # It raises after its last step, but a measurement may go on with the last rate.
            self.schedule_steps = itertools.repeat(schedule.step, self.num_steps - 1)
        self.loss, self.order = torch.zeros((), device=self.device), self.batches()

    def logits(self, views: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            return self.network(views).float()

    def batch_loss(self, views: torch.Tensor, operation: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.logits(views), operation)

    def batch_scores(self, views: torch.Tensor) -> torch.Tensor:
        # From the log-softmax, so that no underflow makes a NaN.
        log_p = functional.log_softmax(self.logits(views), -1)
        return (log_p.exp() * log_p).sum(-1).view(-1, self.k).mean(1)

    def train(self, steps: int) -> None:
        """Continues where the last call stopped; adds the losses of its steps to ``loss``."""
        self.network.train()
        for views, operation in itertools.islice(self.order, steps):
            loss = self.batch_loss(views.to(self.device), operation.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            next(self.schedule_steps, lambda: None)()
            self.loss += loss.detach()
        self.wait()

    @torch.inference_mode()
    def score(self, count: int) -> np.ndarray:
        """NE of the first ``count`` images, [count]."""
        self.network.eval()
        scores = []
        for start in range(0, count, self.scored_together):
            views = self.views_of(start, self.scored_together).to(self.device)
            scores.append(self.batch_scores(views))
        # One copy at the end: the device never waits for the host between batches.
        return torch.cat(scores)[:count].cpu().numpy()

    def wait(self) -> None:
        if not self.on_cpu:
            torch.cuda.synchronize()

    def device_peak(self) -> int:
        return 0 if self.on_cpu else torch.cuda.max_memory_allocated()


# --- The straightforward program --------------------------------------------------------------


def host_view(image: np.ndarray, operation: operations.Operation) -> np.ndarray:
    """A view of a float image [h, w, c] by NumPy and SciPy."""
    side, half = len(image), len(image) // 2
    if operation.flip:
        image = image[:, ::-1]
    if any(operation.shift):
        row, column = operation.shift
        image = scipy.ndimage.shift(image, (-row, -column, 0), order=0, mode="reflect")
    image = np.rot90(image, operation.quarter_turns)
    if operation.patches != (0, 1, 2, 3):
        patches = image.reshape(2, half, 2, half, -1).swapaxes(1, 2).reshape(4, half, half, -1)
        patches = patches[list(operation.patches)].reshape(2, 2, half, half, -1)
        image = patches.swapaxes(1, 2).reshape(image.shape)
    if operation.angle:
        image = scipy.ndimage.rotate(image, operation.angle)
        row, column = ((size - side) // 2 for size in image.shape[:2])
        image = image[row : row + side, column : column + side]
    return image


class Straightforward(TorchBackend):
    """Views of all images in memory, float32 [n, k, c, h, w] on the host, and a DataLoader."""

    def fill_views(self) -> None:
        # Filled in place: stacking at the end would hold all views twice.
        self.views = np.empty((self.n, self.k, self.channels, self.side, self.side), np.float32)
        of_paper = operations.paper_operations(self.config.operations, self.side)
        for image, views in zip(self.images, self.views, strict=True):
            image = image.astype(np.float32) * np.float32(2 / 255) - 1
            for operation, view in zip(of_paper, views, strict=True):
                view[:] = host_view(image, operation).transpose(2, 0, 1)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        operation = torch.arange(self.k).repeat(self.n)
        data = TensorDataset(torch.from_numpy(self.views).flatten(0, 1), operation)
        # Worker processes would only copy what is in memory already: with them it is slower.
        loader = DataLoader(data, self.config.batch_size, shuffle=True)
        while True:
            yield from loader

    def views_of(self, start: int, count: int) -> torch.Tensor:
        return torch.from_numpy(self.views[start : start + count]).flatten(0, 1)

    def pipeline(self) -> dict:
        """Timed from images to scores."""
        self.views = self.order = None  # those of an earlier call
        seconds = timed(
            views=self.fill_views,
            train=lambda: (self.start(), self.train(self.num_steps)),
            score=lambda: self.score(self.n),
        )
        return seconds | {"views_bytes": self.views.nbytes}


# --- The tuned program ------------------------------------------------------------------------


class DeviceViews(nn.Module):
    """e3jax's operations by its tables: views of (image, operation) pairs from a uint8 bank.

    Args:
      operation_set: as e3jax compiled it.
      only_rotated: run the spline on rotated views alone. Their number is then needed on the host:
        free on a CPU, a wait on an accelerator, which does all views instead.
    """

    def __init__(self, operation_set: operations.OperationSet, only_rotated: bool):
        super().__init__()
        self.side, self.only_rotated = operation_set.side, only_rotated
        for name in ("gather", "rotation", "tap", "row_weight", "column_weight", "prefilter"):
            table = torch.from_numpy(np.array(getattr(operation_set, name)))
            self.register_buffer(name, table if table.is_floating_point() else table.long())
        # Mirrored coefficients around the image, by repeating the prefilter's rows.
        self.prefilter = self.prefilter[np.pad(np.arange(self.side), _PAD, mode="reflect")]
        offsets = torch.arange(4)[:, None] * (self.side + 2 * _PAD) + torch.arange(4)
        self.tap = self.tap[:, None] + offsets.view(1, 16, 1)
        weights = self.row_weight[..., :, None] * self.column_weight[..., None, :]
        self.register_buffer("weight", weights.flatten(-2).mT.contiguous())

    def forward(self, bank: torch.Tensor, image: torch.Tensor, operation: torch.Tensor):
        """uint8 [n * p, c], int [b], int [b] -> float [b, c, h, w], channels_last in memory."""
        pixels = bank[(image * self.side**2)[:, None] + self.gather[operation]]
        pixels = pixels.float() * (2 / 255) - 1
        rotation = self.rotation[operation]
        if self.only_rotated:
            rows = rotation.nonzero().squeeze(1)
            pixels[rows] = self._rotate(pixels[rows], rotation[rows])
        else:
            rotated = (rotation > 0)[:, None, None]
            pixels = torch.where(rotated, self._rotate(pixels, rotation), pixels)
        return self._squares(pixels).contiguous(memory_format=torch.channels_last)

    def _squares(self, pixels: torch.Tensor) -> torch.Tensor:
        """[b, p, c] -> [b, c, h, w]."""
        return pixels.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)

    def _rotate(self, pixels: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        # Bfloat16 would show in the views: autocast must not reach this product.
        with torch.autocast(pixels.device.type, enabled=False):
            source = (self.prefilter @ self._squares(pixels) @ self.prefilter.mT).flatten(2)
        taps, weights, view = self.tap[rotation], self.weight[rotation], torch.zeros_like(pixels).mT
        for i in range(16):
            tap = taps[:, i, None].expand(-1, pixels.shape[2], -1)
            view = view + weights[:, i, None] * source.gather(2, tap)
        return view.mT


class Tuned(TorchBackend):
    """Nothing waits for the host between the steps of a call; ``bfloat16`` is autocast.

    Args:
      config, shape: as of any backend.
      mode: "compile" or "eager".
    """

    def __init__(self, config: dict, shape: list[int], mode: str):
        super().__init__(config, shape)
        self.start(fused=True)
        self.network = self.network.to(memory_format=torch.channels_last)
        # On a CPU few, so that their views stay in the cache.
        self.scored_together = 1 if self.on_cpu else 64
        self.bfloat16 = self.config.precision == "bfloat16"
        self.bank = torch.from_numpy(self.images.reshape(-1, self.channels)).to(self.device)
        operation_set = operations.operation_set(self.config.operations, self.side)
        self.device_views = DeviceViews(operation_set, only_rotated=self.on_cpu).to(self.device)
        if mode == "compile":
            how = "default" if self.on_cpu else "max-autotune-no-cudagraphs"
            for name in ("device_views", "batch_loss", "batch_scores"):
                setattr(self, name, torch.compile(getattr(self, name), mode=how))

    def pairs(self) -> Iterator[torch.Tensor]:
        """Batches of image * k + operation, each once per epoch in a new random order; no end."""
        total, size = self.n * self.k, self.config.batch_size
        kind = torch.int32 if total < 2**31 else torch.int64
        left = torch.empty(0, dtype=kind, device=self.device)
        while True:
            # What an epoch leaves over begins the next batch, as in e3jax.
            left = torch.cat([left, torch.randperm(total, dtype=kind, device=self.device)])
            full = len(left) // size * size
            yield from left[:full].split(size)
            left = left[full:].clone()

    def views(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.device_views(self.bank, pairs // self.k, pairs % self.k)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pairs in map(torch.Tensor.long, self.pairs()):
            yield self.views(pairs), pairs % self.k

    def views_of(self, start: int, count: int) -> torch.Tensor:
        pairs = torch.arange(start * self.k, (start + count) * self.k, device=self.device)
        return self.views(pairs % (self.n * self.k))

    @torch.inference_mode()
    def random_views(self) -> None:
        self.views(torch.randint(self.n * self.k, (VIEWS_PER_CALL,), device=self.device))
        self.wait()

    def make_train(self) -> tuple[Callable, int]:
        return lambda: self.train(self.steps), self.steps * self.config.batch_size

    def make_score(self) -> tuple[Callable, int]:
        count = min(8 * self.scored_together, self.n)
        return lambda: self.score(count), count * self.k

    def make_views(self) -> tuple[Callable, int]:
        return self.random_views, VIEWS_PER_CALL

    def make_gemm(self) -> tuple[Callable, int]:
        dtype = torch.bfloat16 if self.bfloat16 and not self.on_cpu else torch.float32
        a = torch.ones((self.gemm_side, self.gemm_side), dtype=dtype, device=self.device)
        return lambda: (a @ a, self.wait()), 2 * self.gemm_side**3
