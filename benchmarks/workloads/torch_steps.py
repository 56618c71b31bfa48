"""Models and training steps in PyTorch, eager or compiled, as its documentation advises for CPUs.

That is: fused optimizers, convolutions in channels_last layout, denormal numbers flushed.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.catalogue import RESNET_STAGES, Workload


class Session:
    """A model and its optimizer; see `benchmarks.workloads`.

    Parameters
    ----------
    workload : Workload
    compiled : bool, default False
        Whether model and loss go through `torch.compile`.
    parallel : bool, default False
        Whether ranks train together, with `DistributedDataParallel`.
    """

    def __init__(self, workload: Workload, compiled: bool = False, parallel: bool = False):
        torch.manual_seed(0)
        torch.set_flush_denormal(True)
        self._workload = workload
        self._images = len(workload.input_shape) == 3
        model = _MODELS[workload.name]()
        if self._images:
            model = model.to(memory_format=torch.channels_last)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        if workload.optimizer == "sgd":
            self._optimizer: Any = torch.optim.SGD(self._weights, 0.01, momentum=0.9, fused=True)
        else:
            self._optimizer = torch.optim.Adam(self._weights, 0.001, fused=True)
        if parallel:
            model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        binary = workload.classes == 1

        def loss_of(x: Any, y: Any) -> Any:
            logits = model(x)
            if binary:
                return functional.binary_cross_entropy_with_logits(logits, y)
            return functional.cross_entropy(logits, y)

        self._loss_of = torch.compile(loss_of) if compiled else loss_of

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(weight.numel() for weight in self._weights)

    def prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Batches as tensors; images as (batch, channels, height, width), stored channels_last."""
        inputs = torch.from_numpy(x)
        targets = torch.from_numpy(y)
        if self._images:
            inputs = inputs.permute(0, 3, 1, 2)
        if self._workload.classes > 1:
            targets = targets.long()
        return inputs.split(self._workload.batch), targets.split(self._workload.batch)

    def train(self, x: Any, y: Any) -> tuple[list[float], float]:
        """Each batch once."""
        ends, value = [], 0.0
        for inputs, targets in zip(x, y, strict=True):
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss_of(inputs, targets)
            loss.backward()
            self._optimizer.step()
            value = loss.item()
            ends.append(time.perf_counter())
        return ends, value

    def seconds(self, x: Any, y: Any) -> float:
        """How long that takes."""
        start = time.perf_counter()
        ends, _ = self.train(x, y)
        return ends[-1] - start


def _perceptron(*widths: int) -> Any:
    def make() -> Any:
        layers: list[Any] = []
        for inputs, units in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, units), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return make


def _convnet() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(1600, 10),
    )


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20000, 128)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        # PyTorch gives each gate two biases, which add up; one suffices.
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.head = nn.Linear(128, 1)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10000, 128)
        self.positions = nn.Parameter(torch.rand(128, 128) / 10)
        blocks = [nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(128, 2)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.blocks(self.embedding(tokens) + self.positions).mean(1))


class _Block(nn.Module):
    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        stride = 1 if inputs == filters else 2
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False) if stride == 2 else nn.Identity()

    def forward(self, x: Any) -> Any:
        return functional.relu(self.shortcut(x) + self.inner(x))


def _resnet() -> Any:
    layers: list[Any] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for _, filters in RESNET_STAGES:
        for _ in range(3):
            layers.append(_Block(inputs, filters))
            inputs = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


_MODELS: dict[str, Any] = {
    "W1": _perceptron(784, 64, 10),
    "W2": _perceptron(784, 1024, 1024, 10),
    "W3": _convnet,
    "W4": _Recurrent,
    "W5": _Transformer,
    "W6": _resnet,
}
