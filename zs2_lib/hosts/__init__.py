"""Adapters: how each host's UNet, noise and output meet the algorithm."""
