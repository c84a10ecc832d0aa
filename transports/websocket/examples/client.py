"""Says a WAV file (16 kHz, mono) to the agent and keeps its reply. Needs `pip install websockets`."""
import asyncio, json, sys, wave
import websockets

async def main(url, question, answer):
    async with websockets.connect(url, subprotocols=["rspp.v1.json"]) as ws:
        await ws.send(json.dumps({"type": "hello"}))
        asyncio.create_task(speak(ws, wave.open(question)))
        reply = bytearray()
        async for message in ws:
            if isinstance(message, bytes):
                reply += message
                continue
            event = json.loads(message)
            if event["type"] == "text" and event["final"]:
                print(f"{event['speaker']}: {event['text']}", flush=True)
            elif event["type"] == "error":
                print(event["message"], file=sys.stderr)
            elif event["type"] == "audio_end":
                await ws.send(json.dumps({"type": "bye"}))
    with wave.open(answer, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(reply)

async def speak(ws, question):
    frames = question.readframes(question.getnframes()) + bytes(16000)
    for at in range(0, len(frames), 640):
        await ws.send(frames[at:at + 640])
        await asyncio.sleep(0.02)

asyncio.run(main(*sys.argv[1:]))
