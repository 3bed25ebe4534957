"""The registry, which adds servicers to the gRPC server for services and to the HTTP server for the gateway."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from services.chassis import request_context
from services.chassis.server import guard
from services.chassis.server.access import is_for_mesh
from services.chassis.server.guard import Guard, Stream, Unary
from services.chassis.server.http_server import HttpServer
from services.chassis.server.statuses import Answer
from services.chassis.server.watch import DROPPED

_LAST_WORD_SECONDS = 0.1

Handler = Any  # grpc.RpcMethodHandler, whose attributes its type stubs leave out
Context = grpc.aio.ServicerContext[Any, Any]


class Registry:
    """Takes the place of a server in generated code: `add_CatalogServiceServicer_to_server(servicer, registry)`.

    Wraps every method in `guard` and adds it to the gRPC server and, unless only services may call it, to `http`.
    """

    def __init__(self, guard: Guard, server: grpc.aio.Server, http: HttpServer | None = None) -> None:
        self._guard, self._server, self._http = guard, server, http

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Does nothing: generated code repeats all of it in the call below."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Adds the methods of the servicer of `service`."""
        served = {name: self._served(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, served),))

    def _served(self, method: str, handler: Handler) -> Handler:
        decode, encode = guard.decoder(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary:
            unary = self._guard.unary(method, handler.unary_unary)
            if self._http and not is_for_mesh(method):
                self._http.add_unary(method, unary, decode, encode)
            return grpc.unary_unary_rpc_method_handler(_unary(unary), decode, encode)
        stream = self._guard.stream(method, handler.unary_stream)
        if self._http and not is_for_mesh(method):
            self._http.add_stream(method, stream, decode, encode)
        return grpc.unary_stream_rpc_method_handler(
            _stream(stream, lambda: self._guard.too_slow(method)), decode, encode
        )


def _unary(guarded: Unary) -> Any:
    async def answer(request: Any, context: Context) -> Any:
        outcome = await guarded(request, dict(context.invocation_metadata() or ()), context.time_remaining())
        if isinstance(outcome, Answer):
            await _refuse(outcome, context)
        return outcome

    return answer


def _stream(guarded: Stream, too_slow: Callable[[], Answer]) -> Any:
    async def answer(request: Any, context: Context) -> None:
        begun = False
        try:
            async for outcome in guarded(request, dict(context.invocation_metadata() or ())):
                if isinstance(outcome, Answer):
                    # The first message was sent after the headers.
                    await _refuse(outcome._replace(initial=()) if begun else outcome, context)
                begun = True
                await context.write(outcome)
        except asyncio.CancelledError as cancelled:
            if cancelled.args == (DROPPED,):
                # It queues behind messages that the client has not read, so it is sent without waiting.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORD_SECONDS):
                        await _refuse(too_slow()._replace(initial=()), context)
            raise  # without DROPPED the client has disconnected

    return answer


async def _refuse(answer: Answer, context: Context) -> None:
    # Only for external clients: sending initial metadata disables gRPC's transparent retry.
    if answer.initial and not request_context.current().caller.service:
        await context.send_initial_metadata(answer.initial)
    # Raises. Setting a code and returning would send an empty response along with the refusal.
    await context.abort(answer.code, answer.message, answer.trailing)
