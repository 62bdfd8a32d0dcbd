"""The networks of the experiments."""

import torch
from torch import nn


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
