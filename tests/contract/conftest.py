"""Fixtures of the contract tests."""

import pytest
import torch

from .subjects import FILTERS, SUBJECTS


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request):
    """Return each optimizer class in turn, AdamW included."""
    return request.param


@pytest.fixture(params=FILTERS, ids=str)
def library_subject(request):
    """Return each of the library's own classes, where they promise more than AdamW."""
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    """Run tiny problems on one thread, and leave torch's settings as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
