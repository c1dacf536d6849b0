"""Who may use the routes: whom the host lets use its API, or its page."""

from __future__ import annotations

from secrets import compare_digest

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

_basic = HTTPBasic(auto_error=False)


def checked(request: Request, credentials: HTTPBasicCredentials | None = Depends(_basic)) -> None:
    """Raises HTTPException 401, unless the request has a user and password of --api-auth or the cookie of the page's
    login (--gradio-auth). Either will do where both are set; none is asked for where none is set.
    """
    logged_in, wanted = _login(request), _users()
    if logged_in or (wanted and _knows(wanted, credentials)) or (not wanted and logged_in is None):
        return
    headers = {"WWW-Authenticate": "Basic"} if wanted else None
    raise HTTPException(401, "Incorrect username or password" if wanted else "Not authenticated", headers)


def checked_or_of_page(request: Request, credentials: HTTPBasicCredentials | None = Depends(_basic)) -> None:
    """As `checked`, for what the page itself asks for: where it is open to all, although the API is not, so is this."""
    if _login(request) is None and _has_page(request):
        return
    checked(request, credentials)


def _has_page(request: Request) -> bool:
    return hasattr(request.app, "tokens")


def _login(request: Request) -> bool | None:
    """Whether the request has the cookie of a login to the page, which gradio keeps; None where none is asked for."""
    app = request.app
    if getattr(app, "auth", None) is None:
        return None
    end = f"-{app.cookie_id}" if hasattr(app, "cookie_id") else ""
    cookies = (request.cookies.get(name + end) for name in ("access-token", "access-token-unsecure"))
    return any(app.tokens.get(cookie) is not None for cookie in cookies if cookie)


def _users() -> dict[str, str]:
    """The passwords of --api-auth, by user, as the host reads them."""
    pairs = (pair.partition(":") for pair in (shared.cmd_opts.api_auth or "").split(",") if pair)
    return {user: password for user, _, password in pairs}


def _knows(users: dict[str, str], credentials: HTTPBasicCredentials | None) -> bool:
    if credentials is None or credentials.username not in users:
        return False
    return compare_digest(credentials.password.encode(), users[credentials.username].encode())
