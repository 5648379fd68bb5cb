"""What PyTorch can do for the same numbers, by its own means.

A uint8 bank and e3jax's tables on the device, views generated inside the step, channels_last, fused
optimizers, torch.compile. Legend: ``n`` images, ``k`` operations, ``b`` batch, ``p = h * w`` pixels,
``c`` channels.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from speed.backend import GEMM_SIDE, STEPS_PER_CALL, VIEWS_PER_CALL
from speed.torch_program import Program, TorchBackend, wait
from torch import nn

from e3jax import operations, training

_PAD = 2  # spline coefficients that e3jax's tables expect around an image


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
        return _square(pixels, self.side).contiguous(memory_format=torch.channels_last)

    def _rotate(self, pixels: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        # Bfloat16 would show in the views: autocast must not reach this product.
        with torch.autocast(pixels.device.type, enabled=False):
            source = self.prefilter @ _square(pixels, self.side) @ self.prefilter.mT
        taps, weights, view = self.tap[rotation], self.weight[rotation], torch.zeros_like(pixels).mT
        for i in range(16):
            tap = taps[:, i, None].expand(-1, pixels.shape[2], -1)
            view = view + weights[:, i, None] * source.flatten(2).gather(2, tap)
        return view.mT


def _square(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """[b, p, c] -> [b, c, h, w]."""
    return pixels.unflatten(1, (side, side)).permute(0, 3, 1, 2)


class TunedProgram(Program):
    """Nothing waits for the host between the steps of a call; ``bfloat16`` is autocast."""

    # On a CPU few, so that their views stay in the cache.
    scored_together = {"cpu": 1, "cuda": 64}

    def __init__(
        self, images: np.ndarray, config: training.TrainConfig, device: str, compiled: bool
    ):
        super().__init__(images, config, device, fused=True)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.bank = torch.from_numpy(images.reshape(-1, images.shape[-1])).to(device)
        operation_set = operations.operation_set(config.operations, images.shape[1])
        self.make_views = DeviceViews(operation_set, device == "cpu").to(device)
        if compiled:
            mode = "max-autotune-no-cudagraphs" if device == "cuda" else "default"
            for name in ("make_views", "batch_loss", "batch_scores"):
                setattr(self, name, torch.compile(getattr(self, name), mode=mode))

    def pairs(self) -> Iterator[torch.Tensor]:
        """Batches of image * k + operation, each once per epoch in a new random order; no end."""
        total, size = self.n * self.k, self.config.batch_size
        kind = torch.int32 if total < 2**31 else torch.int64
        left = torch.empty(0, dtype=kind, device=self.device)
        while True:
            epoch = torch.randperm(total, dtype=kind, device=self.device)
            # What an epoch leaves over begins the next batch, as in e3jax.
            left = torch.cat([left, epoch])
            full = len(left) // size * size
            yield from left[:full].split(size)
            left = left[full:].clone()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pairs in self.pairs():
            image, operation = pairs.long() // self.k, pairs.long() % self.k
            yield self.make_views(self.bank, image, operation), operation

    def views_of(self, start: int, count: int) -> torch.Tensor:
        image = torch.arange(start, start + count, device=self.device) % self.n
        operation = torch.arange(self.k, device=self.device).repeat(count)
        return self.make_views(self.bank, image.repeat_interleave(self.k), operation)

    def batch_loss(self, views: torch.Tensor, operation: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return super().batch_loss(views, operation)

    def batch_scores(self, views: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return super().batch_scores(views)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=enabled)

    def random_views(self, count: int) -> None:
        with torch.inference_mode():
            pair = torch.randint(self.n * self.k, (count,), device=self.device)
            self.make_views(self.bank, pair // self.k, pair % self.k)
        wait(self.device)


class Tuned(TorchBackend):
    """The program above, compiled or eager."""

    def prepare(self, mode: str, seconds: float) -> dict:
        """Builds what is measured; ``mode`` "auto" keeps the faster of "compile" and "eager"."""
        found = {}
        for name in ("compile", "eager") if mode == "auto" else (mode,):
            try:
                self.calls = self._calls(compiled=name == "compile")
                compiling = self.compile()
                speed = self.measure("train", seconds) if mode == "auto" else 0.0
                found[name] = (speed, compiling, self.calls)
            except Exception as error:
                # Without a compiler or Python's headers, for example, eager remains.
                if name in ("eager", mode):
                    raise
                print(f"torch.compile does not work here: {error}"[:500], file=sys.stderr)
        best = max(found, key=lambda name: found[name][0])
        _, compiling, self.calls = found[best]
        return compiling | {"mode": best, "speeds": {name: of[0] for name, of in found.items()}}

    def _calls(self, compiled: bool) -> dict:
        program = TunedProgram(self.images, self.config, self.device, compiled)
        steps = STEPS_PER_CALL[self.kind]
        scored = min(8 * program.scored_together[self.device], program.n)
        return {
            "train": (lambda: program.train(steps), steps * self.config.batch_size),
            "score": (lambda: program.score(scored), scored * program.k),
            "views": (lambda: program.random_views(VIEWS_PER_CALL), VIEWS_PER_CALL),
        }

    def make_gemm(self) -> tuple[Callable[[], None], int]:
        half = self.kind == "accelerator" and self.config.precision == "bfloat16"
        size, dtype = GEMM_SIDE[self.kind], torch.bfloat16 if half else torch.float32
        a = torch.ones((size, size), dtype=dtype, device=self.device)
        return lambda: (a @ a, wait(self.device)), 2 * size**3
