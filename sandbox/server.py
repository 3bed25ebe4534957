"""Serves HTTP: each protocol below the path that its SDK calls, the sandbox's own API on all other paths."""

from __future__ import annotations

from aiohttp import web

from sandbox import control
from sandbox.razorpay.handler import PREFIX, RazorpayHandler
from sandbox.service import Sandbox
from sandbox.settings import Settings
from sandbox.stripe.handler import StripeHandler

SHUTDOWN_S = 5.0


class Handler:
    """Gives each request to the protocol that it belongs to."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._stripe, self._razorpay = StripeHandler(sandbox), RazorpayHandler(sandbox)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/v1/"):
            return await self._stripe.handle(request)
        if request.path.startswith(f"{PREFIX}/v1/"):
            return await self._razorpay.handle(request)
        return await control.handle(self._sandbox, request)


class Running:
    """A sandbox that listens, from `start` to `stop`."""

    def __init__(self, sandbox: Sandbox, runner: web.ServerRunner, url: str) -> None:
        self.sandbox = sandbox
        self.url = url
        self._runner = runner

    async def stop(self) -> None:
        """Lets running requests end, stops webhooks, and closes the state."""
        await self._runner.cleanup()
        await self.sandbox.stop()


async def start(settings: Settings) -> Running:
    """Loads the state and listens. Raises `OSError` if the address is taken."""
    sandbox = Sandbox(settings)
    server = web.Server(Handler(sandbox).handle, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    except OSError:
        await runner.cleanup()
        await sandbox.stop()
        raise
    host, port = runner.addresses[0][:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    sandbox.base_url = settings.public_url or url
    sandbox.start()
    return Running(sandbox, runner, url)
