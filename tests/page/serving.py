"""The player's files, a bare page and two clips on a server that answers as the routes of the WebUI do."""

from __future__ import annotations

import base64
import colorsys
import io
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from zs2_lib.media.write import write_clip

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/below/a path/"
"""The page is on a sub-path, as behind a proxy."""
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".mp4": "video/mp4", ".webm": "video/webm"}
SIZE = (96, 64)


def colours(count: int, start: float) -> list[tuple[int, int, int]]:
    """As many colours as there are frames, each far from the others."""
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(start + k / count * 0.8, 0.8, 0.8)) for k in range(count)]


class Clip:
    """A clip with a frame of each colour, and what the route `about` says of it."""

    def __init__(self, folder: Path, name: str, frames: int, fps: float, start: float = 0):
        self.name, self.fps, self.colours = name, fps, colours(frames, start)
        self.pictures = [Image.new("RGB", SIZE, colour) for colour in self.colours]
        path = folder / name
        self.path = write_clip(self.pictures, path.with_suffix(""), path.suffix[1:], fps)

    @property
    def about(self) -> dict:
        arrays = np.stack([np.asarray(picture, dtype=float) for picture in self.pictures])
        strip = Image.new("RGB", (48 * len(self.pictures), 32))
        for k, picture in enumerate(self.pictures):
            strip.paste(picture.resize((48, 32)), (48 * k, 0))
        file = io.BytesIO()
        strip.save(file, "JPEG")
        image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        columns = list(range(len(self.pictures)))
        about = {"name": self.name, "path": str(self.path), "frames": len(self.pictures), "fps": self.fps}
        about |= {"width": SIZE[0], "height": SIZE[1], "stopped": False, "infotext": "a prompt\nSteps: 1", "every": 1}
        about["change"] = np.abs(np.diff(arrays, axis=0)).mean((1, 2, 3)).tolist()
        about["drift"] = np.abs(arrays - arrays[0]).mean((1, 2, 3)).tolist()
        return about | {"filmstrip": {"image": image, "frames": columns, "width": 48, "height": 32}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    clips: dict[str, Clip] = {}

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        if not path.startswith(PREFIX):
            return self._answer(404, b"")
        path = path.removeprefix(PREFIX)
        if path.startswith("zs2/v1/clips"):
            return self._clip(path.removeprefix("zs2/v1/clips").strip("/"))
        file = Path(__file__).with_name("page.html") if not path else ROOT / path
        if file.is_file() and (not path or path == "style.css" or path.startswith("javascript/")):
            return self._answer(200, file.read_bytes(), TYPES[file.suffix])
        return self._answer(404, b"")

    def _clip(self, path: str):
        if not path:
            entries = [{"name": name, "format": name.split(".")[-1], "bytes": 1, "modified": 1} for name in self.clips]
            return self._json(200, entries)
        name = path.removesuffix("/about").removesuffix("/video")
        if name not in self.clips:
            return self._json(404, {"detail": f"there is no clip {name!r}"})
        if path.endswith("/about"):
            return self._json(200, self.clips[name].about)
        data = self.clips[name].path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data, TYPES[Path(name).suffix])
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        about = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return self._answer(206, data[first : last + 1], TYPES[Path(name).suffix], about)

    def _json(self, status: int, value):
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain", more: dict | None = None):
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(body),
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
            **(more or {}),
        }
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def served(clips: list[Clip]):
    """The address of the page."""
    handler = type("OfClips", (Handler,), {"clips": {clip.name: clip for clip in clips}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX.replace(' ', '%20')}"
    finally:
        server.shutdown()
        server.server_close()
