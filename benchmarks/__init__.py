"""Benchmarks: ratios from interleaved runs, so that the machine's noise cancels."""
