"""What a ControlNet is shown of a picture: preprocessors that need no weights, by the WebUI's names."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

NONE, CANNY = "none", "canny"
OF_AUX = {"lineart_standard": "LineartStandardDetector", "mediapipe_face": "MediapipeFaceDetector"}
"""Those of `controlnet_aux` that need no weights: its others have pickled ones, which can run code."""
NAMES = (NONE, CANNY, *OF_AUX)
THRESHOLDS = 100, 200
"""Of Canny's edges, as the WebUI has them."""


def preprocessor(name: str) -> Callable[[Image.Image], Image.Image]:
    """The preprocessor of that name, which gives a picture of the same size. Raises ValueError for one that there is
    not, or whose package is missing.
    """
    if name == NONE:
        return _same
    if name == CANNY:
        _check_package("cv2", "opencv-python-headless", name)
        return _canny
    if name in OF_AUX:
        _check_package("controlnet_aux", "controlnet_aux", name)
        if name == "mediapipe_face":
            _check_package("mediapipe", "mediapipe", name)
        try:
            _detector(name)
        except Exception as error:  # of any of the many packages that it imports
            raise ValueError(f"{name}: controlnet_aux cannot be used ({type(error).__name__}: {error})") from error
        return functools.partial(_by_aux, name)
    raise ValueError(
        f"{name!r} is no preprocessor here; there are {', '.join(NAMES)} (others need weights that are pickled, which "
        "can run code, or a download); let another program make these images, and give them without one"
    )


def _check_package(module: str, package: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{name} needs {package}; install it with: {sys.executable} -m pip install {package}")


def _same(picture: Image.Image) -> Image.Image:
    return picture


def _canny(picture: Image.Image) -> Image.Image:
    """White edges on black, found in the colours together."""
    import cv2

    return Image.fromarray(cv2.Canny(np.asarray(picture.convert("RGB")), *THRESHOLDS)).convert("RGB")


@functools.cache
def _detector(name: str) -> Callable:
    """A detector of `controlnet_aux`."""
    import controlnet_aux

    return getattr(controlnet_aux, OF_AUX[name])()


def _by_aux(name: str, picture: Image.Image) -> Image.Image:
    shown = _detector(name)(picture.convert("RGB"), detect_resolution=min(picture.size), output_type="pil")
    return shown.convert("RGB").resize(picture.size)
