"""Model files that attack, written by the tests: each must end in a clear error, run nothing, and cost little.

`python hostile.py load FOLDER` loads every file of a folder with little address space to spare and reports as JSON.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

SPARE_BYTES = 1 << 30
"""Address space that loading may take beyond what the process has after its imports."""

RUNS = 'cos\nsystem\n(S"touch MARKER"\ntR.'
"""A pickle that runs a command, in the readable protocol 0."""
HUGE = 1 << 40
SEQUENTIAL = ("torch.nn.modules.container", "Sequential")


def pickled(*opcodes: bytes) -> bytes:
    """A protocol-2 pickle of these opcodes."""
    return pickle.PROTO + b"\x02" + b"".join(opcodes) + pickle.STOP


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    size = (value.bit_length() + 8) // 8
    return pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little", signed=True)


def archive(data: bytes, *, compress: bool = False, **members: bytes) -> bytes:
    """A torch.save archive around the pickle `data`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as written:
        written.writestr("archive/data.pkl", data)
        written.writestr("archive/version", "3\n")
        for path, content in members.items():
            written.writestr(f"archive/{path}", content)
    return stream.getvalue()


def storage(count: int, view: bytes = b"") -> bytes:
    parts = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + number(count) + view
    return pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID


def tensor(count: int, size: int, stride: int = 1, view: bytes = b"") -> bytes:
    """A tensor of `size` elements in a storage that claims `count`; old files say also which `view` it is."""
    args = storage(count, view) + number(0) + number(size) + pickle.TUPLE1 + number(stride) + pickle.TUPLE1
    ordered = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    made = pickle.MARK + args + pickle.NEWFALSE + ordered + pickle.TUPLE
    return name("torch._utils", "_rebuild_tensor_v2") + made + pickle.REDUCE


def built(module: str, attribute: str, *state: tuple[str, bytes]) -> bytes:
    """An object of a class, with this state."""
    pairs = b"".join(text(key) + value for key, value in state)
    made = name(module, attribute) + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    return made + pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS + pickle.BUILD


def foreign_layer(weight: bytes) -> bytes:
    """A module of an unknown class with one parameter."""
    parameters = pickle.EMPTY_DICT + text("w") + weight + pickle.SETITEM
    empty = pickle.EMPTY_DICT
    return built("net", "X", ("_parameters", parameters), ("_buffers", empty), ("_modules", empty))


def old_tensor() -> bytes:
    return tensor(HUGE, HUGE, view=pickle.NONE)


def layer(*children: tuple[str, bytes], module: str = "torch.nn.modules.container", kind: str = "Sequential") -> bytes:
    pairs = b"".join(text(key) + value for key, value in children)
    modules = pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
    empty = pickle.EMPTY_DICT
    return built(module, kind, ("_parameters", empty), ("_buffers", empty), ("_modules", modules))


def remembered(value: bytes, place: int) -> bytes:
    return value + pickle.LONG_BINPUT + struct.pack("<I", place)


def again(place: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", place)


def doubled_layers(depth: int, module: str) -> bytes:
    """A module with 2**depth paths through `depth` modules."""
    data = remembered(layer(module=module), 0)
    for place in range(1, depth):
        data += remembered(layer(("a", again(place - 1)), ("b", again(place - 1)), module=module), place)
    return pickled(data)


def doubled_lists(depth: int) -> bytes:
    data = remembered(pickle.EMPTY_LIST, 0)
    for place in range(1, depth):
        data += remembered(again(place - 1) + again(place - 1) + pickle.TUPLE2, place)
    return pickled(name("net", "Foreign") + data + pickle.TUPLE1 + pickle.REDUCE)


def module_in_itself(module: str) -> bytes:
    made = name(module, "Sequential") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.BINPUT + b"\x00"
    empty = pickle.EMPTY_DICT
    children = pickle.EMPTY_DICT + text("me") + pickle.BINGET + b"\x00" + pickle.SETITEM
    state = text("_parameters") + empty + text("_buffers") + empty + text("_modules") + children
    return pickled(made + pickle.EMPTY_DICT + pickle.MARK + state + pickle.SETITEMS + pickle.BUILD)


def tar(**members: bytes | tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as written:
        for path, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = path
                written.addfile(content)
            else:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                written.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tar_link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def legacy(root: bytes, keys: list[str], storages: bytes) -> bytes:
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in parts) + pickled(root) + pickle.dumps(keys, 2) + storages


def exported(table: object, weight: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        written.writestr("net/archive_format", "pt2")
        written.writestr("net/models/model.json", "{}")
        written.writestr("net/data/weights/model_weights_config.json", json.dumps(table))
        written.writestr("net/data/weights/weight_0", weight)
    return stream.getvalue()


def exported_weight(size: int, *, path: str = "weight_0", by_pickle: bool = False, dtype: int = 7) -> dict[str, object]:
    meta = {
        "dtype": dtype,
        "sizes": [{"as_int": size}],
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
    }
    return {"config": {"conv.weight": {"path_name": path, "use_pickle": by_pickle, "tensor_meta": meta}}}


def safetensors(header: object) -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(8)


def script(data: bytes, **members: bytes) -> bytes:
    return archive(
        data, **{"constants.pkl": b"\x80\x02).", "code/net.py": b"import os; os.system('touch MARKER')"}, **members
    )


def traversal() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        written.writestr("../../MARKER/data.pkl", pickled(tensor(1, 1)))
        written.writestr("../../MARKER", b"\0\0\0\0")
    return stream.getvalue()


def overlapping_bomb() -> bytes:
    """A kilobyte of zeros that the zip directory lists ten thousand times."""
    content = archive(pickled(pickle.EMPTY_DICT), **{f"data/{key}": bytes(1024) for key in range(2)})
    directory = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entry = content[content.rindex(b"PK\x01\x02") : end]
    entries = content[directory:end] + entry * 10_000
    total = 10_003
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, total, total, len(entries), directory, 0)
    return content[:directory] + entries + tail


RUN_PICKLE = name("os", "system") + text("touch MARKER") + pickle.TUPLE1 + pickle.REDUCE

FILES: dict[str, Callable[[], bytes]] = {
    "runs a command.pt": lambda: archive(pickled(RUN_PICKLE)),
    "runs a command beside weights.pt": lambda: archive(
        pickled(pickle.EMPTY_DICT, text("w"), tensor(1, 1), pickle.SETITEM, pickle.POP, RUN_PICKLE),
        **{"data/0": bytes(4)},
    ),
    "runs a command when a module is restored.pt": lambda: archive(
        pickled(layer(("a", layer(("b", RUN_PICKLE)))))
    ),
    "runs a command as a foreign module.pt": lambda: archive(pickled(layer(module="net"), pickle.POP, RUN_PICKLE)),
    "raw pickle.pt": RUNS.encode,
    "legacy pickle that runs.pt": lambda: legacy(RUN_PICKLE, [], b""),
    "tar pickle that runs.pt": lambda: tar(
        storages=pickle.dumps(0, 2) + pickle.dumps([], 2), tensors=pickle.dumps(0, 2), pickle=pickled(RUN_PICKLE)
    ),
    "constructor that would allocate.pt": lambda: archive(
        pickled(name("torch.nn.modules.linear", "Linear"), number(HUGE), number(HUGE), pickle.TUPLE2, pickle.REDUCE)
    ),
    "library function that would be called.pt": lambda: archive(
        pickled(name("torchvision.models.resnet", "resnet18"), pickle.EMPTY_TUPLE, pickle.REDUCE)
    ),
    "name reached through a library.pt": lambda: archive(
        pickled(name("torch.nn.functional", "warnings"), pickle.EMPTY_TUPLE, pickle.REDUCE)
    ),
    "attributes set on a class.pt": lambda: archive(
        pickled(
            name("torch.nn.modules.container", "Sequential"),
            pickle.NONE, pickle.EMPTY_DICT, text("forward"), text("gone"), pickle.SETITEM, pickle.TUPLE2, pickle.BUILD,
        )
    ),
    "module whose child is text.pt": lambda: archive(pickled(layer(("a", text("child"))))),
    "module without its tables.pt": lambda: archive(
        pickled(built(*SEQUENTIAL, ("_parameters", pickle.NONE), ("_modules", pickle.NONE)))
    ),
    "module in itself.pt": lambda: archive(module_in_itself("torch.nn.modules.container")),
    "foreign module in itself.pt": lambda: archive(module_in_itself("net")),
    "module with 2^60 paths.pt": lambda: archive(doubled_layers(60, "torch.nn.modules.container")),
    "foreign module with 2^60 paths.pt": lambda: archive(doubled_layers(60, "net")),
    "tuple with 2^60 leaves.pt": lambda: archive(doubled_lists(60)),
    "deeply nested.pt": lambda: archive(
        pickled(name("net", "X"), pickle.EMPTY_TUPLE + pickle.TUPLE1 * 50_000, pickle.REDUCE)
    ),
    "millions of dictionaries.pt": lambda: archive(pickled(pickle.EMPTY_DICT * (60 << 20)), compress=True),
    "bytes that claim terabytes.pt": lambda: archive(
        pickled(pickle.BINBYTES8 + struct.pack("<Q", HUGE) + b"few")
    ),
    "bytearray of terabytes.pt": lambda: archive(
        pickled(name("builtins", "bytearray"), number(HUGE), pickle.TUPLE1, pickle.REDUCE)
    ),
    "memo index of four billion.pt": lambda: archive(
        pickled(pickle.NONE, pickle.LONG_BINPUT + struct.pack("<I", 0xFFFFFFFF))
    ),
    "storage that claims terabytes.pt": lambda: archive(
        pickled(pickle.EMPTY_DICT, text("w"), tensor(HUGE, HUGE), pickle.SETITEM), **{"data/0": bytes(4)}
    ),
    "storage that is missing.pt": lambda: archive(pickled(pickle.EMPTY_DICT, text("w"), tensor(1, 1), pickle.SETITEM)),
    "tensor beyond its storage.pt": lambda: archive(
        pickled(pickle.EMPTY_DICT, text("w"), tensor(1, HUGE), pickle.SETITEM), **{"data/0": bytes(4)}
    ),
    "tensor of one element seen terabytes wide.pt": lambda: archive(
        pickled(pickle.EMPTY_DICT, text("w"), tensor(1, HUGE, 0), pickle.SETITEM), **{"data/0": bytes(4)}
    ),
    "foreign module with a terabyte.pt": lambda: archive(
        pickled(foreign_layer(tensor(HUGE, HUGE))), **{"data/0": bytes(4)}
    ),
    "unknown reference.pt": lambda: archive(pickled(built("net", "X", ("a", text("x") + pickle.BINPERSID)))),
    "script with a terabyte.pt": lambda: script(
        pickled(built("__torch__.net", "X", ("w", tensor(HUGE, HUGE)))), **{"data/0": bytes(4)}
    ),
    "script without weights.pt": lambda: script(pickled(built("__torch__.net", "X", ("w", pickle.NONE)))),
    "script that would run.pt": lambda: script(pickled(RUN_PICKLE)),
    "big-endian foreign module.pt": lambda: archive(pickled(layer(module="net")), byteorder=b"big"),
    "legacy storage that claims terabytes.pt": lambda: legacy(
        pickle.EMPTY_DICT + text("w") + old_tensor() + pickle.SETITEM, ["0"], struct.pack("<q", HUGE)
    ),
    "legacy foreign module with a terabyte.pt": lambda: legacy(
        foreign_layer(old_tensor()), ["0"], struct.pack("<q", HUGE)
    ),
    "tar storage that claims terabytes.pt": lambda: tar(
        storages=pickle.dumps(1, 2) + pickled(number(0) + text("cpu") + name("torch", "FloatStorage") + pickle.TUPLE3)
        + struct.pack("<q", HUGE),
        tensors=pickle.dumps(0, 2),
        pickle=pickle.dumps({}, 2),
    ),
    "tar tensor of a billion dimensions.pt": lambda: tar(
        storages=pickle.dumps(0, 2) + pickle.dumps([], 2),
        tensors=pickle.dumps(1, 2) + pickle.dumps((0, 0, None), 2) + struct.pack("<ii", 1 << 30, 0),
        pickle=pickle.dumps({}, 2),
    ),
    "tar with links outside.pt": lambda: tar(
        storages=tar_link("/etc/passwd"), tensors=tar_link("../../x"), pickle=tar_link("/dev/zero")
    ),
    "export weight that claims terabytes.pt2": lambda: exported(exported_weight(HUGE), bytes(8)),
    "export weight of another member.pt2": lambda: exported(exported_weight(1, path="../../../../etc/passwd")),
    "export weight by pickle that runs.pt2": lambda: exported(
        exported_weight(1, by_pickle=True), archive(pickled(RUN_PICKLE))
    ),
    "export weight of unknown type.pt2": lambda: exported(exported_weight(1, dtype=99), bytes(8)),
    "export table that is a list.pt2": lambda: exported([1, 2]),
    "zip members outside.pt": traversal,
    "zip with one member ten thousand times.pt": overlapping_bomb,
    "zip bomb of storages.pt": lambda: archive(
        pickled(pickle.EMPTY_DICT), compress=True, **{"data/0": bytes(80 << 20)}
    ),
    "safetensors header of terabytes.safetensors": lambda: struct.pack("<Q", HUGE - 1) + b'{"a"',
    "safetensors tensor of terabytes.safetensors": lambda: safetensors(
        {"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
    ),
    "safetensors tensors that overlap.safetensors": lambda: safetensors(
        {key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for key in "ab"}
    ),
    "safetensors with negative offsets.safetensors": lambda: safetensors(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}}
    ),
    "safetensors nested deeply.safetensors": lambda: struct.pack("<Q", 200_001) + b"{" + b"[" * 200_000,
    "index of paths outside.index.json": lambda: json.dumps(
        {"weight_map": {"a": "/etc/passwd", "b": "../../../../etc/shadow"}}
    ).encode(),
    "index of itself.index.json": lambda: b'{"weight_map": {"a": "index of itself.index.json"}}',
    "index of fifty thousand shards.index.json": lambda: json.dumps(
        {"weight_map": {str(i): f"{i}.bin" for i in range(50_000)}}
    ).encode(),
    "index of numbers.index.json": lambda: b'{"weight_map": {"a": 3}}',
}  # fmt: skip


def write_corpus(folder: Path) -> None:
    """Write every file; MARKER is what the attacks would create."""
    for file, make in FILES.items():
        (folder / file).write_bytes(make())


def load_all(folder: Path) -> dict[str, list[object]]:
    """Load every file: the error's class and text, or "loaded"; seconds; growth of the process's peak in bytes."""
    from binarize.errors import BinarizeError
    from binarize.loading import load_model
    from binarize.loading.recognise import load_index

    load_index()
    sizes = Path("/proc/self/statm").read_text().split()
    limit = int(sizes[0]) * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.chdir(folder)
    outcome: dict[str, list[object]] = {}
    for file in FILES:
        before, started = _peak(), time.monotonic()
        try:
            load_model(folder / file)
            said = ["loaded", ""]
        except BinarizeError as error:
            said = [type(error).__name__, error.message]
        except BaseException as error:
            said = [type(error).__name__, repr(error)]
        outcome[file] = [*said, round(time.monotonic() - started, 2), _peak() - before]
    return outcome


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(load_all(Path(sys.argv[2]))))
