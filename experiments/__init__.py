"""Experiments with filteropt's optimizers, run as ``python -m experiments``.

This package stands outside the library and uses only its public names. ``python -m experiments
--help`` lists the studies; each study is one file here and one entry in ``cli.py``.
"""
