"""The reference implementation of Opus, for a test: `encode` or `decode` standard input, at a rate.

PCM is mono, 16-bit and little-endian; packets each have their length before them, as 32 bits."""
import ctypes, ctypes.util, struct, sys

opus = ctypes.CDLL(ctypes.util.find_library("opus") or "libopus.so.0")
opus.opus_encoder_create.restype = opus.opus_decoder_create.restype = ctypes.c_void_p
VOIP, MOST = 2048, 4000


def checked(code, what):
    if code < 0:
        sys.exit(f"{what}: {code}")
    return code


def encode(pcm, rate):
    frame, error = rate // 50, ctypes.c_int()
    encoder = ctypes.c_void_p(opus.opus_encoder_create(rate, 1, VOIP, ctypes.byref(error)))
    checked(error.value, "create")
    packet = ctypes.create_string_buffer(MOST)
    for at in range(0, len(pcm), frame * 2):
        length = checked(opus.opus_encode(encoder, pcm[at:at + frame * 2], frame, packet, MOST), "encode")
        yield struct.pack("<I", length) + packet.raw[:length]


def decode(packets, rate):
    error = ctypes.c_int()
    decoder = ctypes.c_void_p(opus.opus_decoder_create(rate, 1, ctypes.byref(error)))
    checked(error.value, "create")
    most = rate * 120 // 1000
    pcm = (ctypes.c_int16 * most)()
    while packets:
        length, = struct.unpack("<I", packets[:4])
        packet, packets = packets[4:4 + length], packets[4 + length:]
        made = checked(opus.opus_decode(decoder, packet, length, pcm, most, 0), "decode")
        yield struct.pack(f"<{made}h", *pcm[:made])


what, rate = sys.argv[1:]
turn = {"encode": encode, "decode": decode}[what]
for piece in turn(sys.stdin.buffer.read(), int(rate)):
    sys.stdout.buffer.write(piece)
