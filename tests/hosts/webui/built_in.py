"""The extensions that come with a host of the Forge family and touch its UNet: the requests that switch them on."""

from __future__ import annotations

TILES = {"width": 96, "height": 96}
"""Four tiles of 64×64, which overlap by half."""
MODIFIER = {
    "sharpness_multiplier": 0.0, "sharpness_method": "anisotropic", "tonemap_multiplier": 0.0,
    "tonemap_method": "reinhard", "tonemap_percentile": 100.0, "contrast_multiplier": 0.0, "combat_method": "subtract",
    "combat_cfg_drift": 0.0, "rescale_cfg_phi": 0.0, "extra_noise_type": "gaussian", "extra_noise_method": "add",
    "extra_noise_multiplier": 0.0, "extra_noise_lowpass": 100, "divisive_norm_size": 127,
    "divisive_norm_multiplier": 0.0, "spectral_mod_mode": "hard_clamp", "spectral_mod_percentile": 5.0,
    "spectral_mod_multiplier": 0.0, "affect_uncond": "None", "dyn_cfg_augmentation": "None",
}  # fmt: skip


def script(title: str, *args) -> dict:
    return {title: {"args": [True, *args]}}


def tiles(method: str, batch: int, *others) -> dict:
    return script("MultiDiffusion Integrated", method, 64, 64, 32, batch, *others)


def thresholding(features: str) -> dict:
    title = "DynamicThresholding (CFG-Fix) Integrated"
    return script(title, 3.0, 0.95, "Constant", 0, "Constant", 0, 1, features, "MEAN", "AD", 1)


def modifier(**settings) -> dict:
    return script("LatentModifier Integrated", *{**MODIFIER, **settings}.values())


KOHYA = {
    "Kohya HRFix": script("Kohya HRFix Integrated", 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"),
    "Kohya HRFix, before the skip": script("Kohya HRFix Integrated", 3, 2.0, 0.0, 0.5, False, "bicubic", "bislerp"),
}
FORGE = {
    "self-attention guidance": script("SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)", 1.5, 2.0, 0.5),
    "perturbed attention guidance": script("PerturbedAttentionGuidance Integrated", 3.0, 0.0, 0.0, 1.0),
    **KOHYA,
    "FreeU": script("FreeU Integrated (SD 1.x, SD 2.x, SDXL)", 1.5, 1.6, 0.9, 0.2, 0.0, 1.0),
    "dynamic thresholding": thresholding("enable"),
    "StyleAlign": script("StyleAlign Integrated", 1.0),
    "latent modifier, guidance": modifier(tonemap_multiplier=1.0, contrast_multiplier=5.0, rescale_cfg_phi=0.7),
    "latent modifier, drift": modifier(combat_cfg_drift=1.0),
    "never out of memory": script("Never OOM Integrated", True),
}
GUIDANCE = '"APG\'s now your CFG" and Guidance Limiter for reForge'
REFORGE = {
    "self-attention guidance": script("SelfAttentionGuidance Integrated", 1.5, 2.0),
    **KOHYA,
    "FreeU": script("FreeU Integrated", 1.5, 1.6, 0.9, 0.2),
    "HyperTile, tile sizes at random": script("HyperTile Integrated", 32, 4, 2, False),
    "dynamic thresholding": {
        "DynamicThresholding (CFG-Fix) Integrated": {
            "args": [True, False, 3.0, 0.95, "Constant", 0, "Constant", 0, 1, "enable", "MEAN", "AD", 1]
        }
    },
    "RescaleCFG": script("RescaleCFG for reForge", "Normal", 0.7),
    "adaptive projected guidance": script(GUIDANCE, 0.5, 0.18, 15.0, 1.0, False, 5.42, 0.28),
    "guidance limiter": {GUIDANCE: {"args": [False, 0.5, 0.18, 15.0, 1.0, True, 5.42, 0.28]}},
    "Mahiro CFG": script("Mahiro CFG for reForge"),
    "zero terminal SNR": script("Advanced Model Sampling for reForge", "Discrete", "v_prediction", True),
    "latent modifier, sharpness": {"LatentModifier Integrated": {"args": [True, 10.0, "anisotropic"]}},
    "never out of memory": script("Never OOM Integrated", True),
}
TILED = {
    f"{method}, {batch} tile{'s' * (batch > 1)} at once": (method, batch)
    for method in ("MultiDiffusion", "Mixture of Diffusers")
    for batch in (1, 4)
}
"""Tiles: the method and the batch of a request."""
SOFT_INPAINTING = script("Soft Inpainting", 1, 0.5, 4, 0, 0, 2)
"""Without its threshold of differences: pictures of few steps and random weights would be all original."""
SIZES = {"HyperTile, tile sizes at random": {"width": 128, "height": 128}}
"""Pictures large enough for the extension to have a choice."""
BY_HOST = {"forge": FORGE, "reforge": REFORGE}
