"""The networks of the experiments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class LeNet5(nn.Module):
    """LeNet-5 in today's usual form: ReLU and max-pooling."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        """Build the two convolutions and the three linear maps.

        Args:
            channels: Channels of the images.
            side: Height and width of the images, 28 or 32; 28 is padded to 32, as in the original.
            classes: Number of classes.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, kernel_size=5, padding=(32 - side) // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits.

        Args:
            images: Images ``(n, channels, side, side)``.

        Returns:
            Logits ``(n, classes)``.
        """
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def mlp(inputs: int, hidden: int, classes: int) -> nn.Module:
    """Build a perceptron with two hidden layers of equal width.

    Args:
        inputs: Number of pixels.
        hidden: Width.
        classes: Number of classes.

    Returns:
        The network, from images to logits.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


class Residual(nn.Module):
    """Two normalized 3 x 3 convolutions, added to their input (He et al., 2016, Fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the convolutions, and a 1 x 1 convolution where shapes differ.

        Args:
            inputs: Channels of the input.
            outputs: Channels of the output.
            stride: Stride of the first convolution.
        """
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(_convolution(inputs, outputs, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output.

        Args:
            x: Features ``(n, inputs, height, width)``.

        Returns:
            Features ``(n, outputs, height / stride, width / stride)``.
        """
        inner = relu(self.norms[0](self.first(x)))
        return relu(self.norms[1](self.second(inner)) + self.shortcut(x))


def resnet(
    channels: int,
    classes: int,
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    stride: int = 1,
) -> nn.Module:
    """Build a residual network in the form for small images; by default ResNet-34.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        blocks: Residual blocks at each resolution.
        width: Channels at the first; each next one has twice as many.
        stride: Stride of the first convolution.

    Returns:
        The network, from images to logits.
    """
    layers = [_convolution(channels, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            outputs = width * 2**stage
            layers.append(Residual(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Dense(nn.Module):
    """Appends new channels to the old ones (Huang et al., 2017, DenseNet-B)."""

    def __init__(self, inputs: int, growth: int) -> None:
        """Build the bottleneck.

        Args:
            inputs: Channels of the input.
            growth: New channels.
        """
        super().__init__()
        self.layers = nn.Sequential(
            *_activated(inputs, 4 * growth, 1), *_activated(4 * growth, growth, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output.

        Args:
            x: Features ``(n, inputs, height, width)``.

        Returns:
            Features ``(n, inputs + growth, height, width)``.
        """
        return torch.cat([self.layers(x), x], dim=1)


def densenet(
    channels: int,
    classes: int,
    blocks: Sequence[int] = (6, 12, 24, 16),
    growth: int = 32,
    stride: int = 1,
) -> nn.Module:
    """Build a DenseNet-BC in the form for small images; by default DenseNet-121.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        blocks: Dense blocks at each resolution.
        growth: Channels that each adds; the first convolution makes twice as many.
        stride: Stride of the first convolution.

    Returns:
        The network, from images to logits.
    """
    width = 2 * growth
    layers: list[nn.Module] = [_convolution(channels, width, 3, stride)]
    for stage, count in enumerate(blocks):
        if stage:
            layers += [*_activated(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(Dense(width, growth))
            width += growth
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


def _activated(inputs: int, outputs: int, side: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(inputs), nn.ReLU(), _convolution(inputs, outputs, side)]
