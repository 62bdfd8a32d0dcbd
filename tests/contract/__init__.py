"""The contract of a PyTorch optimizer, checked on every class of `filteropt.presets.__all__`."""
