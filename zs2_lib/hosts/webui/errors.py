"""The one road for errors that the host would swallow.

The host prints what a script's callback raises and goes on: the answer would be plain pictures that look like success.
So the first error of a job is kept on its `p`, and raised by what the host calls next outside of a callback: a method
of `p`, at the latest `close`, or the UNet. The API answers it with the status that it carries, 422 for a SettingsError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def keep(p, error: Exception) -> None:
    """Stops the job `p` with `error`, unless another one has come first."""
    if is_kept(p):
        return
    p.zs2_error, close = error, p.close
    _leave_for_the_page(error)
    request = vars(p).get("zs2_request")
    if request and request.error is None:
        request.error = error

    def stop(*args, **kwargs):
        raise_kept(p)

    def close_and_stop() -> None:
        close()
        raise_kept(p)

    p.setup_prompts = p.init = p.sample = stop
    p.close = close_and_stop


class _NoResult:
    """The result of a request that `error` ended: raises it where it is unpacked."""

    def __init__(self, error: Exception):
        self.error = error

    def __iter__(self):
        raise self.error


def _leave_for_the_page(error: Exception) -> None:
    """Where the page waits for a thread that keeps a request's result and forgets its error, as in reForge, the error
    takes the result's place until there is one.
    """
    frame = sys._getframe(1)
    while frame:
        if frame.f_code.co_name == "work" and frame.f_globals["__name__"] == "modules_forge.main_thread":
            task = frame.f_locals["self"]
            if not hasattr(task, "exception"):
                task.result = _NoResult(error)
        frame = frame.f_back


def is_kept(p) -> bool:
    """Whether an error stops the job `p`."""
    return vars(p).get("zs2_error") is not None


def raise_kept(p) -> None:
    """Raises the error that was kept, if there is one."""
    error = vars(p).get("zs2_error")
    if error is not None:
        raise error


@contextmanager
def kept(p) -> Iterator[None]:
    """An error inside stops the job `p` with its message."""
    try:
        yield
    except Exception as error:
        keep(p, error)


@contextmanager
def kept_and_raised(p) -> Iterator[None]:
    """An error inside goes its way, and stops the job `p` as well, should another extension or the host swallow it."""
    try:
        yield
    except Exception as error:
        keep(p, error)
        raise
