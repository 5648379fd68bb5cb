"""What the two PyTorch programs share. Legend: ``n`` images, ``k`` operations, ``b`` batch."""

import itertools
import re

import numpy as np
import torch
from speed.backend import Backend
from torch import nn
from torch.nn import functional

from e3jax import training


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
        layers, inputs = [_conv(channels, 16, 3, 1)], 16
        for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                layers.append(Block(inputs, outputs, 2 if group and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU())
        self.head = nn.Linear(inputs, num_outputs)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv


class Program:
    """The method in PyTorch, for subclasses that make the views.

    They provide ``batches()``, an endless iterator over shuffled views [b, c, h, w] and their
    operations [b], and ``views_of(start, count)``, all views of some images [count * k, c, h, w].

    Args:
      images: uint8 [n, h, w, c].
      config: as e3jax's.
      device: "cpu" or "cuda".
      options: of the optimizer.
    """

    scored_together = {"cpu": 1, "cuda": 1}  # images

    def __init__(self, images: np.ndarray, config: training.TrainConfig, device: str, **options):
        self.config, self.device, self.k = config, device, config.k
        (self.n, *_, channels), num_steps = images.shape, config.num_steps(len(images))
        self.network = WideResNet(config.network, self.k, channels).to(device)
        options |= {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        rule, own = torch.optim.Adam, {"eps": 1e-7}
        if config.optimizer == "sgd":
            rule, own = torch.optim.SGD, {"momentum": 0.9}
        self.optimizer = rule(self.network.parameters(), **own, **options)
        self._schedule_steps = iter(())
        if config.schedule == "onecycle":  # optax's schedule is PyTorch's
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, config.learning_rate, num_steps, cycle_momentum=False
            )
            # It raises after its last step, but a measurement may go on with the last rate.
            self._schedule_steps = itertools.repeat(schedule.step, num_steps - 1)
        self._batches, self.loss = self.batches(), torch.zeros((), device=device)

    def batch_loss(self, views: torch.Tensor, operation: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.network(views).float(), operation)

    def batch_scores(self, views: torch.Tensor) -> torch.Tensor:
        # From the log-softmax, so that no underflow makes a NaN.
        log_p = functional.log_softmax(self.network(views).float(), -1)
        return (log_p.exp() * log_p).sum(-1).view(-1, self.k).mean(1)

    def train(self, steps: int) -> None:
        """Continues where the last call stopped; adds the losses of its steps to ``loss``."""
        self.network.train()
        for views, operation in itertools.islice(self._batches, steps):
            loss = self.batch_loss(views.to(self.device), operation.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            next(self._schedule_steps, lambda: None)()
            self.loss += loss.detach()
        wait(self.device)

    def score(self, count: int) -> np.ndarray:
        """NE of the first ``count`` images, [count]."""
        self.network.eval()
        together = self.scored_together[self.device]
        with torch.inference_mode():
            scores = [
                self.batch_scores(self.views_of(start, together).to(self.device))
                for start in range(0, count, together)
            ]
            # One copy at the end: the device never waits for the host between batches.
            return torch.cat(scores)[:count].float().cpu().numpy()


def wait(device: str) -> None:
    """Until a device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class TorchBackend(Backend):
    """On the first GPU, or else on the CPU.

    Args:
      config: fields of a TrainConfig.
      data: a .npy file of images uint8 [n, h, w, c].
    """

    def __init__(self, config: dict, data: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__("accelerator" if self.device == "cuda" else "cpu")
        self.images, self.config = np.load(data), training.TrainConfig(**config)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    def hello(self) -> dict:
        return {"platform": self.device}

    def device_peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
