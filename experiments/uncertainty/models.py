"""LeNet-5 with dropout."""

from torch import nn

from experiments.models import LeNet5


def with_dropout(network: nn.Module, probability: float) -> nn.Module:
    """Put dropout before every linear layer of LeNet-5's classifier but the first.

    Args:
        network: The network, which is changed.
        probability: Probability that a unit is dropped; 0 leaves the network as it is.

    Returns:
        The same network.
    """
    if probability:
        assert isinstance(network, LeNet5), "the network of the study"
        layers = []
        for layer in network.classifier:
            layers += [layer, nn.Dropout(probability)] if isinstance(layer, nn.ReLU) else [layer]
        network.classifier = nn.Sequential(*layers)
    return network
