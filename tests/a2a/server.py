"""An agent by the official A2A SDK, as a Hive node would serve it. Prints its address; ends when its input does."""

import asyncio
import os
import socket
import sys
import threading
import time

import uvicorn
from a2a.helpers.proto_helpers import get_message_text, new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes.agent_card_routes import create_agent_card_routes
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, TaskState
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

PATH = "/api/a2a/jsonrpc"


class Echo(AgentExecutor):
    """Echoes; `stream` in the text makes it report its clock in between, `wait` makes it run for long."""

    async def execute(self, context, event_queue):
        text = get_message_text(context.message)
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        if text == "wait":
            await updater.update_status(TaskState.TASK_STATE_WORKING)
            await asyncio.sleep(60)
        if text == "stream":
            for gap in (0.0, 0.12, 0.04, 0.3, 0.2):
                await asyncio.sleep(gap)
                clock = new_text_message(f"at {time.monotonic()}", role=Role.ROLE_AGENT)
                await updater.update_status(TaskState.TASK_STATE_WORKING, message=clock)
        answer = new_text_message(f"echo: {text}", role=Role.ROLE_AGENT)
        await updater.update_status(TaskState.TASK_STATE_COMPLETED, message=answer)

    async def cancel(self, context, event_queue):
        updater = TaskUpdater(event_queue, context.task_id, context.context_id)
        await updater.update_status(TaskState.TASK_STATE_CANCELED)


async def health(_request):
    return JSONResponse({"ok": True})


def main():
    card = AgentCard(
        name="SDK agent",
        description="Echoes.",
        version="1.0.0",
        supported_interfaces=[
            AgentInterface(url=f"https://gateway.test{PATH}", protocol_binding="JSONRPC", protocol_version=version)
            for version in ("1.0", "0.3")
        ],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="echo", name="Echo", description="Echoes.", tags=["test"])],
    )
    handler = DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card)
    routes = create_agent_card_routes(card) + create_jsonrpc_routes(handler, PATH, enable_v0_3_compat=True)
    app = Starlette(routes=[Route("/api/health", health), *routes])

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print("%s:%d" % listener.getsockname(), flush=True)
    # The test's pipe closes with the test, however that ends.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


main()
