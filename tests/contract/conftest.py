"""Fixtures of the contract tests."""

import pytest

from .subjects import FILTERS, SUBJECTS


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request):
    """Return each optimizer class in turn, AdamW included."""
    return request.param


@pytest.fixture(params=FILTERS, ids=str)
def library_subject(request):
    """Return each of the library's own classes, where they promise more than AdamW."""
    return request.param
