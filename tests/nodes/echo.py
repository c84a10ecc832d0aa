"""An external node in Python: answers every text in capitals.

Speaks the protocol of `rspp_proto::external` with nothing but the standard library. The MessagePack
here is what the protocol needs of it.
"""

import struct
import sys


def pack(value):
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value) if value < 0 else b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + struct.pack(">I", len(data)) + data
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    raise TypeError(type(value))


SCALARS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}
LENGTHS = {
    0xC4: (">B", "bin"), 0xC5: (">H", "bin"), 0xC6: (">I", "bin"),
    0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str"),
    0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}


class Unpacker:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self):
        first = self.take(1)[0]
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in SCALARS:
            return self.number(SCALARS[first])
        if first in LENGTHS:
            form, kind = LENGTHS[first]
            return self.collection(kind, self.number(form))
        if first < 0x90:
            return self.collection("map", first & 0x0F)
        if first < 0xA0:
            return self.collection("list", first & 0x0F)
        if first < 0xC0:
            return self.collection("str", first & 0x1F)
        return {0xC0: None, 0xC2: False, 0xC3: True}[first]

    def collection(self, kind, count):
        if kind == "bin":
            return self.take(count)
        if kind == "str":
            return self.take(count).decode()
        if kind == "list":
            return [self.value() for _ in range(count)]
        return {self.value(): self.value() for _ in range(count)}


def frames(stream):
    while len(head := stream.read(4)) == 4:
        yield Unpacker(stream.read(struct.unpack(">I", head)[0])).value()


def send(**frame):
    data = pack(frame)
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()


for frame in frames(sys.stdin.buffer):
    if frame["frame"] == "hello":
        send(frame="ready", protocol=frame["protocol"])
    elif frame["frame"] == "event":
        payload = frame["event"]["payload"]
        if payload["type"] == "text":
            payload["body"]["text"] = payload["body"]["text"].upper()
        send(frame="emit", payload=payload)
        send(frame="done", id=frame["id"])
    elif frame["frame"] == "stop":
        break
