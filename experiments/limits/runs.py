"""Running two optimizers on one stream of gradients, for the study of limits."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from filteropt import FilterOptimizer

Maker = Callable[[list[Parameter]], Optimizer]


def numbers(*values: float) -> Tensor:
    """Values in double precision.

    Args:
        *values: The values.

    Returns:
        The tensor.
    """
    return torch.tensor(values, dtype=torch.float64)


def sweep(low: float, high: float, per_decade: int = 2) -> Tensor:
    """Values spaced evenly in their logarithm.

    Args:
        low: The smallest's decimal logarithm.
        high: The largest's.
        per_decade: How many to a factor of ten.

    Returns:
        The values.
    """
    count = round((high - low) * per_decade) + 1
    return torch.logspace(low, high, count, dtype=torch.float64)


def displacements(make: Maker, gradients: Iterable[Tensor]) -> Tensor:
    """Every step of an optimizer that is given its gradients.

    Args:
        make: Makes the optimizer of one parameter.
        gradients: One of the parameter's shape for every step.

    Returns:
        The steps, one row each. Each starts at 0, so that small ones keep all their digits.
    """
    steps: list[Tensor] = []
    parameter: Parameter | None = None
    for gradient in gradients:
        if parameter is None:
            parameter = Parameter(torch.zeros_like(gradient))
            optimizer = make([parameter])
        parameter.data.zero_()
        parameter.grad = gradient.clone()
        optimizer.step()
        steps.append(parameter.detach().clone())
    return torch.stack(steps)


def walk(make: Maker, gradients: Iterable[Tensor], start: Tensor) -> Tensor:
    """Where an optimizer that is given its gradients takes its parameter.

    Args:
        make: Makes the optimizer of one parameter.
        gradients: One of the parameter's shape for every step.
        start: Where the parameter starts.

    Returns:
        The parameter after every step, one row each.
    """
    parameter = Parameter(start.clone())
    optimizer = make([parameter])
    places = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        places.append(parameter.detach().clone())
    return torch.stack(places)


def variances(
    make: Callable[[list[Parameter]], FilterOptimizer], squares: Iterable[Tensor]
) -> Tensor:
    """A filter's variances under given squared gradients.

    Args:
        make: Makes the filter of one parameter.
        squares: Those of every step, all of one shape.

    Returns:
        The posterior variances after every step, one row each.
    """
    found: list[Tensor] = []
    parameter: Parameter | None = None
    for square in squares:
        if parameter is None:
            parameter = Parameter(torch.zeros_like(square))
            filter = make([parameter])
        parameter.grad = square.sqrt()
        filter.step()
        found.append(filter.posterior_variance(parameter))
    return torch.stack(found)


def debiased_sgd(rate: float, momentum: float) -> Maker:
    """``torch.optim.SGD`` whose momentum buffer is divided by the weight that it has gathered.

    Args:
        rate: The rate, for the averaged gradient.
        momentum: The buffer's decay.

    Returns:
        What makes the optimizer.
    """

    def make(parameters: list[Parameter]) -> Optimizer:
        optimizer = SGD(parameters, lr=rate, momentum=momentum)
        debias = LambdaLR(optimizer, lambda t: (1 - momentum) / (1 - momentum ** (t + 1)))
        optimizer.register_step_post_hook(lambda *_: debias.step())
        return optimizer

    return make


def off(measured: Tensor, reference: Tensor) -> Tensor:
    """Relative errors.

    Args:
        measured: Some numbers.
        reference: What they should be.

    Returns:
        The errors, elementwise.
    """
    return (measured / reference - 1).abs()
