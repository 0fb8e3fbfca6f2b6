"""The few fields of SentencePiece's ModelProto (sentencepiece_model.proto) that a vocabulary needs,
without protobuf: pieces = 1 {piece 1, score 2, type 3}, trainer_spec = 2 {model_type 3, unk/bos/
eos/pad_id 40-43}, normalizer_spec = 3 {add_dummy_prefix 3}."""
import struct
from dataclasses import dataclass

UNIGRAM, BPE = 1, 2
KIND_NAMES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass
class Model:
    pieces: list  # (text, score, type)
    kind: int
    ids: dict     # role -> id, -1 = none
    add_dummy_prefix: bool

    @property
    def kind_name(self):
        return KIND_NAMES.get(self.kind, str(self.kind))


def varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number runs past the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """(field number, wire type, value) of one message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 2, 5):
            if kind == 2:
                size, at = varint(data, at)
            else:
                size = 8 if kind == 1 else 4
            if size > len(data) - at:
                raise ValueError("a field runs past the end")
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"wire type {kind} is not protobuf's")
        yield tag >> 3, kind, value


def signed(value):
    return value - (1 << 64) if value >> 63 else value


def parse_model(raw):
    pieces, kind, prefix = [], UNIGRAM, True
    ids = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    for number, wire, value in fields(raw):
        if number == 1 and wire == 2:
            pieces.append(parse_piece(value))
        elif number == 2 and wire == 2:
            for n, w, v in fields(value):
                if n == 3 and w == 0:
                    kind = v
                elif 40 <= n <= 43 and w == 0:
                    ids[("unk", "bos", "eos", "pad")[n - 40]] = signed(v)
        elif number == 3 and wire == 2:
            for n, w, v in fields(value):
                if n == 3 and w == 0:
                    prefix = bool(v)
    if not pieces:
        raise ValueError("it has no pieces")
    return Model(pieces, kind, ids, prefix)


def parse_piece(data):
    text, score, kind = "", 0.0, 1
    for number, wire, value in fields(data):
        if number == 1 and wire == 2:
            text = value.decode("utf-8")
        elif number == 2 and wire == 5:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and wire == 0:
            kind = value
    return text, score, kind


def length(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def add_pieces(raw, pieces):
    """A message followed by more entries of its repeated field is the message with them added."""
    for text, score, kind in pieces:
        data = text.encode("utf-8")
        body = b"\x0a" + length(len(data)) + data + b"\x15" + struct.pack("<f", score)
        body += b"\x18" + bytes([kind])
        raw += b"\x0a" + length(len(body)) + body
    return raw
