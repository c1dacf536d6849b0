"""Protects upscaler models: tiles leave no trace, sizes are the WebUI's, and no file can run code."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("spandrel")

from small_models import upscaler
from zs2_lib.hosts.diffusers import upscalers
from zs2_lib.hosts.diffusers.checkpoints import ModelError
from zs2_lib.hosts.diffusers.upscalers import load_upscaler

CPU = torch.device("cpu")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def model(tmp_path):
    load_upscaler.cache_clear()
    return load_upscaler(str(upscaler(tmp_path / "x2.safetensors")), CPU, torch.float32)


def test_it_is_the_model(model):
    pixels = torch.from_numpy(np.array(picture(40, 24))).permute(2, 0, 1)[None] / 255
    alone = (model.model(pixels)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(model(picture(40, 24), (80, 48))), alone)
    lanczos = picture(40, 24).resize((80, 48), Image.Resampling.LANCZOS)
    assert np.abs(alone.astype(int) - np.asarray(lanczos)).max() > 20


def test_tiles_change_nothing(model):
    """Within rounding; the model sees three pixels around each."""
    whole = np.asarray(model(picture(150, 100), (300, 200))).astype(int)
    model.tile = 64
    assert np.abs(np.asarray(model(picture(150, 100), (300, 200))) - whole).max() <= 1
    seen, larger = [], model.model
    model.model = type("Seeing", (), {"__getattr__": lambda self, name: getattr(larger, name)})()
    type(model.model).__call__ = lambda self, tile: (seen.append(tuple(tile.shape[2:])), larger(tile))[1]
    model(picture(150, 100), (300, 200))
    assert max(side for shape in seen for side in shape) <= 64 + 2 * upscalers.MARGIN and len(seen) == 6


def test_other_factors_than_the_models(model):
    """As often as needed, and then resized."""
    twice = model.larger(model.larger(picture(16, 24)))
    assert np.array_equal(model(picture(16, 24), (64, 96)), twice)
    assert np.array_equal(model(picture(16, 24), (56, 72)), twice.resize((56, 72), Image.Resampling.LANCZOS))
    once = model.larger(picture(16, 24))
    assert np.array_equal(model(picture(16, 24), (24, 32)), once.resize((24, 32), Image.Resampling.LANCZOS))
    assert model(picture(16, 24), (160, 240)).size == (160, 240)  # which takes more rounds than there are


def test_in_other_numbers(tmp_path, model):
    half = load_upscaler(str(tmp_path / "x2.safetensors"), CPU, torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    difference = np.asarray(half(picture(40, 24), (80, 48))).astype(int) - np.asarray(model(picture(40, 24), (80, 48)))
    assert np.abs(difference).max() <= 4


def test_other_files_are_refused(tmp_path):
    torch.save({"body.0.weight": torch.zeros(1)}, tmp_path / "pickled.pth")
    with pytest.raises(ModelError, match=r"pickled.pth' is no .safetensors file .*can run code.*convert it"):
        load_upscaler(str(tmp_path / "pickled.pth"), CPU, torch.float32)
    file = tmp_path / "it.safetensors"
    file.write_bytes((tmp_path / "pickled.pth").read_bytes())
    with pytest.raises(ModelError, match=r"it.safetensors' cannot be loaded \(.*copy it again"):
        load_upscaler(str(file), CPU, torch.float32)
    save_file({"something": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"is no model that spandrel knows; choose another"):
        load_upscaler(str(file), CPU, torch.float32)
    upscaler(file, channels=1)
    with pytest.raises(ModelError, match=r"takes 1 channels and gives 1; choose an upscaler of RGB"):
        load_upscaler(str(file), CPU, torch.float32)
    tensors = load_file(upscaler(file))
    del tensors["body.2.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*copy it again"):
        load_upscaler(str(file), CPU, torch.float32)
