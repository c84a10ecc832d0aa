"""Talks to a server with the official package of that API, and says what came: one line for each check."""
import asyncio, base64, json, math, struct, sys
from openai import AsyncOpenAI

RATE = 24_000


def tone(seconds):
    samples = (int(8_000 * math.sin(2 * math.pi * 147 * n / RATE)) for n in range(int(seconds * RATE)))
    return b"".join(struct.pack("<h", sample) for sample in samples)


def check(what, holds):
    print(("ok      " if holds else "FAILED  ") + what, flush=True)
    if not holds:
        sys.exit(1)


async def until(connection, last):
    came = []
    async with asyncio.timeout(30):
        async for event in connection:
            # What the package does not know, it gives as a bare model: each of these has a type of its own.
            check_known(event)
            came.append(event)
            if last(event):
                return came


def check_known(event):
    if type(event).__module__.split(".")[0] != "openai" or type(event).__name__ == "BaseModel":
        check(f"the package knows {event.type}", False)


def is_(kind):
    return lambda event: event.type == kind


async def send(connection, pcm):
    for at in range(0, len(pcm), 4_800):
        await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[at:at + 4_800]).decode())


async def spoken(client):
    async with client.realtime.connect(model="gpt-realtime") as connection:
        first = await connection.recv()
        check("session.created comes first", first.type == "session.created")
        await connection.session.update(session={
            "type": "realtime",
            "instructions": "Be brief.",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": RATE},
                    "transcription": {"model": "gpt-4o-transcribe"},
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                },
                "output": {"voice": "marin"},
            },
        })
        updated = (await until(connection, is_("session.updated")))[-1].session
        check("the session is as it was set up", updated.instructions == "Be brief.")
        check("so is its detection", updated.audio.input.turn_detection.silence_duration_ms == 400)
        await send(connection, tone(1.0) + bytes(2 * RATE))
        came = await until(connection, is_("response.done"))
        kinds = [event.type for event in came]
        for kind in ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
                     "input_audio_buffer.committed", "response.created", "response.output_audio.delta"]:
            check(kind, kind in kinds)
        heard = [it for it in came if it.type == "conversation.item.input_audio_transcription.completed"]
        check("what was said is understood", [it.transcript for it in heard] == ["hello there"])
        words = "".join(it.delta for it in came if it.type == "response.output_audio_transcript.delta")
        check("the agent answers", words == "Good day to you. How can I help?")
        sound = b"".join(base64.b64decode(it.delta) for it in came if it.type == "response.output_audio.delta")
        check("it is heard", 1.5 < len(sound) / 2 / RATE < 2.5)
        response = came[-1].response
        check("the response is complete", response.status == "completed")
        check("with its item", response.output[0].content[0].transcript == words)
        check("and its usage", response.usage.total_tokens is not None)


async def by_hand(client):
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session={
            "type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await until(connection, is_("session.updated"))
        await connection.input_audio_buffer.clear()
        await until(connection, is_("input_audio_buffer.cleared"))
        await send(connection, tone(1.0))
        await connection.input_audio_buffer.commit()
        await until(connection, is_("input_audio_buffer.committed"))
        await connection.response.create()
        came = await until(connection, is_("response.done"))
        heard = [it for it in came if it.type == "conversation.item.input_audio_transcription.completed"]
        check("a turn by hand is understood", [it.transcript for it in heard] in (["hello there"], ["and again"]))
        check("and answered", came[-1].response.status == "completed")


async def cancelled(client):
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "tell me a story"}]})
        await connection.response.create()
        came = await until(connection, is_("response.output_audio.delta"))
        item = came[-1].item_id
        await connection.response.cancel()
        came = await until(connection, is_("response.done"))
        check("a cancelled response says so", came[-1].response.status_details.reason == "client_cancelled")
        await connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=10)
        came = await until(connection, is_("conversation.item.truncated"))
        check("what was heard of it is told", came[-1].audio_end_ms == 10)
        await connection.conversation.item.retrieve(item_id="nothing", event_id="mine")
        error = (await until(connection, is_("error")))[-1].error
        check("an error names what, where and of which event",
              (error.code, error.param, error.event_id) == ("item_not_found", "item_id", "mine"))
        await connection.session.update(session={
            "type": "realtime", "tools": [{"type": "mcp", "server_label": "x", "server_url": "https://x.example"}]})
        error = (await until(connection, is_("error")))[-1].error
        check("what is not served is refused precisely",
              (error.code, error.param) == ("unsupported_value", "session.tools[0].type"))


async def written(client):
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        updated = (await until(connection, is_("session.updated")))[-1].session
        check("the agent is to write", updated.output_modalities == ["text"])
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "good morning"}]})
        await connection.response.create(response={"output_modalities": ["text"]})
        came = await until(connection, is_("response.done"))
        words = "".join(it.delta for it in came if it.type == "response.output_text.delta")
        whole = [it.text for it in came if it.type == "response.output_text.done"]
        check("it writes", words == "Good day to you. How can I help?" and whole == [words])
        check("and is not heard", not any("audio" in it.type for it in came))
        part = came[-1].response.output[0].content[0]
        check("its item is text", (part.type, part.text) == ("output_text", words))


async def with_tools(client):
    async with client.realtime.connect(model="gpt-realtime") as connection:
        tool = {"type": "function", "name": "weather", "description": "How the weather is.", "parameters": {
            "type": "object", "properties": {"place": {"type": "string"}, "day": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
            "required": ["place"]}}
        await connection.session.update(session={"type": "realtime", "tools": [tool], "tool_choice": "auto"})
        updated = (await until(connection, is_("session.updated")))[-1].session
        check("the session has the client's tool", updated.tools[0].name == "weather")
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "the weather in Rome?"}]})
        await connection.response.create()
        came = await until(connection, is_("response.done"))
        kinds = [event.type for event in came]
        places = [kinds.index(kind) for kind in [
            "response.created", "response.output_item.added", "response.function_call_arguments.delta",
            "response.function_call_arguments.done", "response.output_item.done", "response.done"]]
        check("the call comes in its order", places == sorted(places))
        call = came[-1].response.output[0]
        check("the response ends with it", (call.type, call.name) == ("function_call", "weather"))
        check("its arguments are whole", json.loads(call.arguments) == {"place": "Rome"})
        deltas = "".join(it.delta for it in came if it.type == "response.function_call_arguments.delta")
        check("and so were its deltas", deltas == call.arguments)
        await connection.conversation.item.create(item={
            "type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        await connection.response.create()
        came = await until(connection, is_("response.done"))
        words = "".join(it.delta for it in came if it.type == "response.output_audio_transcript.delta")
        check("the next goes on with what came of it", words == "It is sunny.")
        check("and is heard", any(it.type == "response.output_audio.delta" for it in came))
        await connection.conversation.item.create(event_id="again", item={
            "type": "function_call_output", "call_id": call.call_id, "output": "rainy"})
        error = (await until(connection, is_("error")))[-1].error
        check("an output is said once", (error.param, error.event_id) == ("item.call_id", "again"))


async def main(url):
    client = AsyncOpenAI(base_url=url, api_key="a-key")
    for part in [spoken, by_hand, cancelled, written, with_tools]:
        await part(client)
    print("all is well")

asyncio.run(main(*sys.argv[1:]))
