"""ZS²: zero-shot video sampling from image diffusion models."""
