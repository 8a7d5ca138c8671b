"""The nodes of an ONNX file by their names, read without the onnx package, which boards lack.

A protobuf message is a row of fields, each a key (number and wire type) and a value. Of a model we
want field 7, the graph; of that every field 1, its nodes; of a node inputs (1), outputs (2), name
(3) and operator (4). Everything else, weights above all, is passed over.
"""

from typing import Any, Dict, Iterator, List, Tuple

GRAPH, NODE = 7, 1
INPUT, OUTPUT, NAME, OPERATOR = 1, 2, 3, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_nodes(path: str) -> List[Dict[str, Any]]:
    """Name, operator, inputs and outputs of the nodes of a model's main graph, in its order.

    Raises:
        ValueError: it is no protobuf message.
    """
    with open(path, "rb") as stream:
        model = memoryview(stream.read())
    graphs = [value for field, value in _fields(model) if field == GRAPH]
    return [_node(value) for g in graphs for field, value in _fields(g) if field == NODE]


def _node(message: memoryview) -> Dict[str, Any]:
    told: Dict[int, List[str]] = {INPUT: [], OUTPUT: [], NAME: [], OPERATOR: []}
    for field, value in _fields(message):
        if field in told:
            told[field].append(bytes(value).decode("utf-8"))
    return {
        "name": "".join(told[NAME][-1:]),
        "op": "".join(told[OPERATOR][-1:]),
        "inputs": told[INPUT],
        "outputs": told[OUTPUT],
    }


def _fields(message: memoryview) -> Iterator[Tuple[int, memoryview]]:
    """Number and content of the fields that hold bytes; numbers are passed over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == BYTES:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise ValueError("a field ends behind its message")
            yield key >> 3, message[place : place + size]
            place += size
        elif wire == VARINT:
            _, place = _varint(message, place)
        elif wire in (FIXED64, FIXED32):
            place += 8 if wire == FIXED64 else 4
        else:
            raise ValueError("wire type {} is none of protobuf's".format(wire))


def _varint(message: memoryview, place: int) -> Tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number ends behind its message")
