"""A backward pass that gathers whatever a composition needs: draws, sampled labels, examples."""

from __future__ import annotations

from contextlib import nullcontext

import torch

import filteropt


def source(opt):
    """Where a filter's likelihood looks, beside the gradient."""
    likelihood = opt._bind(opt.param_groups[0]).filter.likelihood
    return likelihood.core.source if likelihood.needs > {"grad"} else ""


def backward(opt, model, x, loss, generator, kind="gaussian", temperature=1.0):
    """Backpropagate ``loss(outputs)``, at a draw and for sampled labels where they are needed."""
    where = nullcontext()
    if source(opt) == "samples":
        where = opt.sampled_params(train=True, generator=generator, temperature=temperature)
    with where:
        outputs = model(x)
        loss(outputs).backward(retain_graph=True)
        if source(opt) == "labels":
            labels = filteropt.sample_labels(outputs, kind, generator=generator)
            with opt.fisher_pass():
                if kind == "gaussian":
                    (0.5 * (outputs - labels).square().sum()).backward()
                else:
                    torch.nn.functional.cross_entropy(outputs, labels, reduction="sum").backward()
