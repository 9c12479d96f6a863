"""A partner by the official A2A SDK: `client.py WHAT HOST:PORT CA CERT KEY`. The last line is what it found, as JSON."""

import asyncio
import json
import socket
import ssl
import sys
import time
import uuid

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_message_text, new_text_message
from a2a.types.a2a_pb2 import CancelTaskRequest, GetTaskRequest, Role, SendMessageRequest, TaskState

what, address, ca, cert, key = sys.argv[1:]
host, port = address.split(":")

# gateway.test is the name in the gateway's certificate; there is no DNS for it.
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda name, *rest, **named: resolve(
    host if name in ("gateway.test", b"gateway.test") else name, *rest, **named
)


def say(text):
    return SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))


async def card_of(http):
    card = await A2ACardResolver(http, f"https://gateway.test:{port}").get_agent_card()
    for interface in card.supported_interfaces:
        interface.url = interface.url.replace("gateway.test", f"gateway.test:{port}")
    return card


def fold(found, event):
    """Task id and latest status of what came so far."""
    if event.HasField("task"):
        found["task"], status = event.task.id, event.task.status
    elif event.HasField("status_update"):
        found["task"], status = event.status_update.task_id, event.status_update.status
    else:
        return None
    found["state"] = TaskState.Name(status.state)
    found["text"] = get_message_text(status.message)
    return found["text"]


async def send(client, _http):
    found = {}
    async for event in client.send_message(say("Grüße, 世界 🐝")):
        fold(found, event)
    found["got"] = (await client.get_task(GetTaskRequest(id=found["task"]))).id
    return found


async def stream(client, _http):
    # Once without looking: what Python does for the first time takes its time.
    async for _ in client.send_message(say("stream")):
        pass
    found = {"sent": [], "seen": []}
    async for event in client.send_message(say("stream")):
        text = fold(found, event)
        if text and text.startswith("at "):
            found["sent"].append(float(text.removeprefix("at ")))
            found["seen"].append(time.monotonic())
    return found


async def missing_task(client, _http):
    try:
        await client.get_task(GetTaskRequest(id=str(uuid.uuid4())))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


async def cancel(client, _http):
    found = {}
    events = client.send_message(say("wait"))
    async for event in events:
        fold(found, event)
        if found.get("state") == "TASK_STATE_WORKING":
            break
    task = await client.cancel_task(CancelTaskRequest(id=found["task"]))
    await events.aclose()
    return {"state": TaskState.Name(task.status.state)}


async def send_refused(client, _http):
    try:
        await send(client, _http)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


async def main():
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    async with httpx.AsyncClient(verify=context, timeout=20) as http:
        card = await card_of(http)
        if what == "card":
            return {"name": card.name}
        version = "0.3" if what.endswith("_v03") else "1.0"
        interfaces = [i for i in card.supported_interfaces if i.protocol_version == version]
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(interfaces)
        streaming = what.startswith(("stream", "cancel"))
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)
        return await globals()[what.removesuffix("_v03")](client, http)


print(json.dumps(asyncio.run(main())))
