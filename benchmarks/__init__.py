"""Every figure that this project states, measured: `python -m benchmarks --help`."""
