"""The sandbox's pages: plain HTML, one script and one style sheet. They load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from aiohttp import web

_HERE = Path(__file__).parent
_STATIC = {"overview.js": "text/javascript", "style.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'"
)


class Html(str):
    """Text that is HTML already; any other value of a page is escaped."""

    __slots__ = ()


def html(name: str, *, status: int = 200, leads_to: Iterable[str] = (), **values: str) -> web.Response:
    """Answers a page. `leads_to` are the addresses that its forms end at: browsers block redirects to others."""
    template = Template((_HERE / f"{name}.html").read_text())
    shown = {key: value if isinstance(value, Html) else escape(value) for key, value in values.items()}
    headers = {
        "Content-Security-Policy": " ".join([_POLICY, *sorted({_origin(url) for url in leads_to})]),
        "Cache-Control": "no-store",
        # With no referrer at all, browsers hide the origin of the page's own forms too.
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(text=template.substitute(shown), status=status, headers=headers, content_type="text/html")


def static(name: str) -> web.Response | None:
    """Answers the script or the style sheet; None for any other name."""
    kind = _STATIC.get(name)
    if kind is None:
        return None
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.Response(text=(_HERE / name).read_text(), headers=headers, content_type=kind)


def go(url: str) -> web.Response:
    """Sends the browser to another page, with GET."""
    return web.Response(status=303, headers={"Location": url, "Cache-Control": "no-store"})


def _origin(url: str) -> str:
    """The origin as the policy names it; the scheme alone for addresses of apps."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and not set(parts.netloc) & set(" ;,'\""):
        return f"{parts.scheme}://{parts.netloc}"
    return f"{parts.scheme}:"
