"""An installed WebUI, started on a data directory of its own, and a client of its HTTP API."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kinds import Kind, kind_of

READY = "Startup time:"
"""What the host prints when it is up. A request before that would keep it from coming up."""


class HostError(RuntimeError):
    """The server's answer to a request was an error: its status, and its message in words."""

    def __init__(self, status: int, message: str):
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message


@dataclass
class Result:
    """What txt2img or img2img gave: the files as they came, and the host's `info`."""

    files: list[bytes]
    info: dict

    @property
    def frames(self) -> np.ndarray:
        """All files as pictures, (images, height, width, rgb) in 0..255."""
        return np.stack([picture(file) for file in self.files])

    @property
    def clips(self) -> list[bytes]:
        """The clips' files, of which `info` has the base64; not playing grids of them."""
        return [base64.b64decode(clip["data"]) for clip in self.entries()]

    def entries(self, grid: bool = False) -> list[dict]:
        """What `info` says of clips, or of playing grids of them."""
        return [clip for clip in self.info["zs2_clips"] if clip.get("grid", False) == grid]

    @property
    def infotext(self) -> str:
        return self.info["infotexts"][0]


def picture(file: bytes) -> np.ndarray:
    """An image file as (height, width, rgb) in 0..255; of an animation, the first frame."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(np.int16)


def png_base64(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Client:
    """The API of a running WebUI; errors are raised with the server's message.

    user: of --api-auth, as user:password.
    """

    def __init__(self, url: str, timeout: float = 600, user: str = ""):
        self.url, self.timeout = url, timeout
        self.headers = {"Content-Type": "application/json"}
        if user:
            self.headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()

    def request(self, path: str, payload=None, method: str | None = None):
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, data, self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, AttributeError):
                answer = json.loads(text)
                text = "\n".join(
                    str(answer[key]) for key in ("error", "detail", "errors", "message") if answer.get(key)
                )
            raise HostError(error.code, text) from None

    def get(self, path: str):
        return self.request(path)

    def post(self, path: str, payload=None):
        return self.request(path, payload or {})

    def txt2img(self, **payload) -> Result:
        return self._generate("/sdapi/v1/txt2img", payload)

    def img2img(self, init_images, **payload) -> Result:
        """`init_images` and `mask` are arrays (height, width, rgb)."""
        if "mask" in payload:
            payload["mask"] = png_base64(payload["mask"])
        images = [png_base64(image) for image in init_images]
        return self._generate("/sdapi/v1/img2img", {"init_images": images, **payload})

    def _generate(self, path: str, payload: dict) -> Result:
        answer = self.post(path, payload)
        return Result([base64.b64decode(image) for image in answer["images"]], json.loads(answer["info"]))

    def progress(self) -> dict:
        return self.get("/sdapi/v1/progress?skip_current_image=true")

    def interrupt(self) -> None:
        self.post("/sdapi/v1/interrupt")

    def skip(self) -> None:
        self.post("/sdapi/v1/skip")

    def infotext(self, file: bytes) -> str:
        """What the host's PNG Info reads from an image file."""
        image = "data:image/png;base64," + base64.b64encode(file).decode()
        return self.post("/sdapi/v1/png-info", {"image": image})["info"]

    def options(self) -> dict:
        return self.get("/sdapi/v1/options")

    @contextlib.contextmanager
    def options_set(self, **options):
        """The settings of the WebUI changed, with their callbacks, and put back in the end."""
        before = self.options() if options else {}
        try:
            if options:
                self.post("/sdapi/v1/options", options)
            yield
        finally:
            if options:
                self.post("/sdapi/v1/options", {name: before[name] for name in options})


@dataclass(frozen=True)
class Installation:
    """Where a WebUI is installed, and the Python it runs on."""

    root: Path
    python: Path

    @classmethod
    def from_environment(cls) -> Installation | None:
        root = os.environ.get("ZS2_WEBUI")
        if not root:
            return None
        root = Path(root).resolve()
        return cls(root, Path(os.environ.get("ZS2_WEBUI_PYTHON") or root / "venv" / "bin" / "python"))

    @property
    def kind(self) -> Kind:
        return kind_of(self.root)

    @property
    def version(self) -> str:
        return _version(self.root)

    @property
    def controlnet(self) -> Path | None:
        """Where the extension sd-webui-controlnet is installed: $ZS2_CONTROLNET, or among the WebUI's extensions."""
        path = Path(os.environ.get("ZS2_CONTROLNET") or self.root / "extensions" / "sd-webui-controlnet").resolve()
        return path if path.is_dir() else None

    @property
    def controlnet_version(self) -> str:
        return _version(self.controlnet)

    def install_extension(self, extension: Path) -> None:
        """Runs an extension's install.py as the WebUI does when it starts."""
        if (script := extension / "install.py").exists():
            environment = {**os.environ, "PYTHONPATH": str(self.root)}
            run = subprocess.run([self.python, script], cwd=self.root, env=environment, capture_output=True, text=True)
            if run.returncode:
                raise RuntimeError(f"{script.name} failed:\n{run.stdout}{run.stderr}")


def _version(repository: Path) -> str:
    command = ["git", "-C", str(repository), "describe", "--tags", "--always"]
    git = subprocess.run(command, capture_output=True, text=True)
    own = repository / "modules_forge" / "forge_version.py"  # where it was not cloned
    words = re.findall(r"""^(?:version|release) = ["'](.*)["']""", own.read_text(), re.M) if own.exists() else []
    return git.stdout.strip() or " ".join(words) or "unknown version"


class Server:
    """A WebUI process on a data directory: `with Server(...) as client:`."""

    def __init__(self, installation: Installation, data: Path, *flags: str, start_timeout: float = 240):
        self.installation, self.data, self.flags, self.start_timeout = installation, data, flags, start_timeout
        self.log = data / "server.log"

    def __enter__(self) -> Client:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        root, kind = self.installation.root, self.installation.kind
        allowed = () if kind.allows_root else (f"--gradio-allowed-path={root}",)
        flags = (*kind.flags, *allowed, *self.flags, f"--data-dir={self.data}", f"--port={port}")
        command = [self.installation.python, "launch.py", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        environment |= {"PYTHONUNBUFFERED": "1", "COMMANDLINE_ARGS": ""}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        users = [flag.partition("=")[2].split(",")[0] for flag in self.flags if flag.startswith("--api-auth=")]
        return Client(f"http://127.0.0.1:{port}", user="".join(users))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                code = self.process.returncode
                raise RuntimeError(f"the WebUI ended while starting, exit code {code}:\n{self.tail()}")
            if READY in self.log.read_text(errors="replace"):
                return
            time.sleep(0.5)
        raise RuntimeError(f"the WebUI was not ready after {self.start_timeout} s:\n{self.tail()}")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Background(threading.Thread):
    """A request that runs while the test goes on; `result()` waits for it, and raises what it raised."""

    def __init__(self, call, *args, **kwargs):
        super().__init__(daemon=True)
        self._call, self._outcome, self._error = lambda: call(*args, **kwargs), None, None
        self.start()

    def run(self):
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 300):
        self.join(timeout)
        if self.is_alive():
            raise TimeoutError(f"the request did not end within {timeout} s")
        if self._error:
            raise self._error
        return self._outcome
