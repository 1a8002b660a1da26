"""Files that nobody would make in good faith, one per kind and its neighbours.

`python tests/attack/make.py FOLDER` writes all of them; `test_attack.py` runs every command on them. An `Attack` says which
commands must refuse the file (`needs`), and what the message must name.
"""

import io
import struct
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import more
import numpy as np
from onnx import TensorProto, helper, numpy_helper

MODEL, DATA = "model", "data"
# Commands: what a model goes through before the engine, and what also runs it.
ALL = ("quantize", "inspect", "verify", "lint", "text", "diff")
GRAPH = ("quantize", "inspect", "verify", "lint")
RUN = ("quantize", "verify")
NONE = ()


@dataclass
class Attack:
    name: str
    kind: str  # MODEL or DATA
    content: bytes
    needs: tuple = ALL
    names: tuple = ()  # one of them must be in the message; none: the file's name
    beside: dict = field(default_factory=dict)  # further files, by name; None: a folder
    suffix: str = ".onnx"


# ------------------------------------------------------------------------------------------------------------- models

RANDOM = np.random.RandomState(0)
W = RANDOM.randn(8, 8).astype(np.float32)
ONES = np.ones(8, np.float32)
node = helper.make_node


def value(name, *shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, constants=(), inputs=None, outputs=None, functions=(), opset=18, extra=()):
    """x [b, s, 8] → … → y; a norm and a Linear come first, so that there is something to quantize."""
    block = [
        node("LayerNormalization", ["x", "gamma"], ["n"], name="norm", axis=-1),
        node("MatMul", ["n", "w"], ["h"], name="linear"),
    ]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(gamma=ONES, w=W, **dict(constants)).items()]
    inputs = inputs or [value("x", "b", "s", 8)]
    graph = helper.make_graph(block + list(nodes), "g", inputs, outputs or [value("y", None, None, None)], tensors + list(extra))
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=sets, ir_version=9)


def raw(m):
    return m.SerializeToString(deterministic=True)


def good():
    return model([node("Relu", ["h"], ["y"], name="last")])


def large():
    """As good(), with a weight that goes out with --external-data."""
    w = np.random.RandomState(1).randn(8, 512).astype(np.float32)
    return model([node("MatMul", ["h", "w2"], ["y"], name="last")], dict(w2=w))


def varint(n):
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def nested(depth):
    """A message in a message in a message: GraphProto.node.attribute.g.node …"""
    data = b""
    for _ in range(depth):
        for tag in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            data = varint(tag << 3 | 2) + varint(len(data)) + data
    return b"\x08\x09" + varint(7 << 3 | 2) + varint(len(data)) + data


def containers():
    whole = raw(good())
    yield "empty", b""
    yield "one-byte", b"\x08"
    yield "text", b"hello, this is no model\n" * 20
    yield "json", b'{"graph": {"node": []}}'
    yield "zip", b"PK\x03\x04" + bytes(60)
    yield "png", b"\x89PNG\r\n\x1a\n" + bytes(60)
    yield "zeros", bytes(4096)
    yield "ones", b"\xff" * 4096
    for part in range(1, 10):
        yield f"truncated-{part}", whole[: len(whole) * part // 10]
    yield "trailing", whole + b"\x00\x01\x02"
    yield "nested-200", nested(200)
    yield "nested-20000", nested(20000)
    yield "length-2-63", b"\x3a" + varint(2**63)
    yield "length-2-31", b"\x3a" + varint(2**31)
    yield "varint-endless", b"\x08" + b"\xff" * 20
    yield "group", b"\x3b\x08\x01\x3c"
    yield "wire-type-7", b"\x3f\x00"
    yield "field-0", b"\x00\x01"
    yield "unknown-field", whole + varint(500 << 3) + b"\x01"
    yield "no-graph", raw(good())[: whole.index(b"\x3a")] if b"\x3a" in whole else b"\x08\x09"
    m = good()
    del m.opset_import[:]
    yield "no-opset", raw(m)


def tensor_of(dims, dtype, data=b"", name="bad_tensor"):
    t = TensorProto(name=name, data_type=dtype, raw_data=data)
    t.dims.extend(dims)
    return t


def tensors():
    F, I64 = TensorProto.FLOAT, TensorProto.INT64
    yield "negative", tensor_of([-1, 8], F, bytes(32))
    yield "overflow", tensor_of([2**62, 2**62], F, bytes(32))
    yield "product-0", tensor_of([2**40, 2**40, 0], F, bytes(4))
    yield "short", tensor_of([8], F, bytes(28))
    yield "long", tensor_of([8], F, bytes(36))
    yield "odd", tensor_of([8], F, bytes(31))
    yield "huge", tensor_of([2**40], F, bytes(32))
    both = tensor_of([8], F, bytes(32))
    both.float_data.extend([1.0] * 8)
    yield "both", both
    wrong = TensorProto(name="bad_tensor", data_type=F)
    wrong.dims.append(8)
    wrong.int64_data.extend([1] * 8)
    yield "wrong-field", wrong
    many = TensorProto(name="bad_tensor", data_type=TensorProto.FLOAT16)
    many.dims.append(2)
    many.int32_data.extend([1, 2, 3])
    yield "half-long", many
    segment = tensor_of([8], F, bytes(32))
    segment.segment.begin, segment.segment.end = 0, 8
    yield "segment", segment


def externals():
    base = dict(location="w.bin", offset="0", length="256")
    files = {"w.bin": bytes(256), "sub": None}
    for name, change in {
        "no-location": dict(location=None),
        "empty-location": dict(location=""),
        "absolute": dict(location="/etc/passwd"),
        "device": dict(location="/dev/zero"),
        "up": dict(location="../w.bin"),
        "up-inside": dict(location="sub/../../w.bin"),
        "missing": dict(location="nowhere.bin"),
        "folder": dict(location="sub"),
        "itself": dict(location="."),
        "offset-end": dict(offset="1"),
        "offset-far": dict(offset=str(2**63)),
        "offset-wraps": dict(offset=str(2**64 - 128)),
        "offset-2-64": dict(offset=str(2**64)),
        "offset-negative": dict(offset="-1"),
        "offset-word": dict(offset="many"),
        "length-short": dict(length="255"),
        "length-long": dict(length="257"),
        "length-negative": dict(length="-256"),
        "length-0": dict(length="0"),
        "newline": dict(location="w\n.bin"),
        "nul": dict(location="w\0.bin"),
        "checksum": dict(checksum="0" * 40),
    }.items():
        t = TensorProto(name="bad_tensor", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        t.dims.extend([8, 8])
        for key, entry in {**base, **change}.items():
            if entry is not None:
                t.external_data.add(key=key, value=entry)
        yield name, t, files


def graphs():
    relu = node("Relu", ["h"], ["y"], name="last")
    bad = dict(name="bad_node")
    yield "cycle", [node("Add", ["h", "q"], ["p"], **bad), node("Relu", ["p"], ["q"]), node("Relu", ["q"], ["y"])]
    yield "self", [node("Add", ["h", "y"], ["y"], **bad)]
    yield "undefined", [node("Add", ["h", "nothing"], ["y"], **bad)]
    yield "order", [node("Relu", ["p"], ["y"], **bad), node("Relu", ["h"], ["p"])]
    yield "twice", [relu, node("Neg", ["h"], ["y"], **bad)]
    yield "over-input", [relu, node("Neg", ["h"], ["x"], **bad)]
    yield "over-constant", [relu, node("Neg", ["h"], ["w"], **bad)]
    yield "no-output", [node("Relu", ["h"], ["z"], **bad)]
    inner = helper.make_graph([node("Relu", ["nothing"], ["i"], **bad)], "i", [], [value("i", 1)])
    yes = dict(yes=np.bool_(True))
    yield "inner-undefined", [node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner, name="bad_if")], yes


ARITY = {
    "MatMul": (1, 3), "Gemm": (1, 4), "Add": (1, 3), "Mul": (1, 3), "Relu": (0, 2), "Softmax": (0, 2), "Transpose": (0, 2),
    "Reshape": (0, 3), "LayerNormalization": (1, 4), "Gather": (1, 3), "Where": (2, 4), "QuantizeLinear": (1, 4),
    "DequantizeLinear": (1, 4), "Expand": (1, 3), "Erf": (0, 2), "Cast": (0, 2), "Pow": (1, 3), "Sqrt": (0, 2),
}  # fmt: skip


def arities():
    for op, counts in ARITY.items():
        for count in counts:
            attributes = {"to": 1} if op == "Cast" else {}
            yield f"{op}-{count}-inputs", [node(op, ["h"] * count, ["y"], name="bad_node", **attributes)]
        attributes = {"to": 1} if op == "Cast" else {}
        names = ["y", "z", "z2", "z3"]
        fewest = min(c for c in range(1, 4) if c > counts[0])
        yield f"{op}-outputs", [node(op, ["h"] * fewest, names, name="bad_node", **attributes)]
    yield "MatMul-hole", [node("MatMul", ["", "w"], ["y"], name="bad_node")]
    yield "Add-hole", [node("Add", ["", "h"], ["y"], name="bad_node")]


def attributes():
    far = [2**62, -(2**63), 65, -66]
    for axis in far:
        yield f"softmax-{axis}", node("Softmax", ["h"], ["y"], axis=axis)
        yield f"concat-{axis}", node("Concat", ["h", "h"], ["y"], axis=axis)
        yield f"gather-{axis}", node("Gather", ["h", "one"], ["y"], axis=axis)
    for perm in ([0, 0, 1], [0, 1, 3], [-1, 0, 1], [0, 1, 2**40]):
        yield f"perm-{perm}".replace(" ", ""), node("Transpose", ["h"], ["y"], perm=perm)
    for to in (99, -1, 2**40):
        yield f"cast-{to}", node("Cast", ["h"], ["y"], to=to)
    for n in (0, -3, 2**40):
        yield f"split-outputs-{n}", node("Split", ["h"], ["y"], num_outputs=n)
    for size in (-1, -(2**63)):
        yield f"block-{size}", node("DequantizeLinear", ["wq", "ws"], ["y"], block_size=size)
    for sizes in ([0, 0], [-1, 3], [2**40, 1]):
        yield f"kernel-{sizes}".replace(" ", ""), node("Conv", ["h", "cw"], ["y"], kernel_shape=sizes)
        yield f"strides-{sizes}".replace(" ", ""), node("MaxPool", ["h"], ["y"], kernel_shape=[1], strides=sizes)
    yield "group-0", node("Conv", ["h", "cw"], ["y"], group=0)
    yield "blocksize-0", node("SpaceToDepth", ["h"], ["y"], blocksize=0)


ATTRIBUTE_CONSTANTS = dict(
    one=np.int64(1), wq=W.astype(np.int8), ws=np.float32(0.1), cw=RANDOM.randn(4, 8, 3).astype(np.float32)
)


def runs():
    """What only shapes tell: the engine would give up without a name, wait, or take all memory."""
    i64 = lambda *v: np.array(v, np.int64)  # noqa: E731
    yield "matmul-k", [node("MatMul", ["h", "w9"], ["y"])], dict(w9=RANDOM.randn(9, 8).astype(np.float32))
    yield "matmul-vector", [node("MatMul", ["h", "w9"], ["y"])], dict(w9=RANDOM.randn(9).astype(np.float32))
    yield "gemm-k", [node("Reshape", ["h", "flat"], ["r"]), node("Gemm", ["r", "w9"], ["y"])], dict(flat=i64(-1, 8), w9=RANDOM.randn(9, 4).astype(np.float32))
    yield "gemm-k-transposed", [node("Reshape", ["h", "flat"], ["r"]), node("Gemm", ["r", "w9"], ["y"], transB=1)], dict(flat=i64(-1, 8), w9=RANDOM.randn(4, 9).astype(np.float32))
    yield "gemm-rank", [node("Gemm", ["h", "w"], ["y"])], {}
    yield "perm-rank", [node("Transpose", ["h"], ["y"], perm=[0, 1])], {}
    yield "axis-rank", [node("Softmax", ["h"], ["y"], axis=3)], {}
    yield "gather-axis-rank", [node("Gather", ["h", "one"], ["y"], axis=-4)], dict(one=np.int64(1))
    yield "split-sum", [node("Split", ["h", "sizes"], ["y", "z"], axis=-1)], dict(sizes=i64(5, 5))
    yield "concat-ranks", [node("Concat", ["h", "flat"], ["y"], axis=0)], dict(flat=ONES)
    yield "add-shapes", [node("Add", ["h", "nine"], ["y"])], dict(nine=np.ones(9, np.float32))
    yield "reshape-impossible", [node("Reshape", ["h", "to"], ["y"])], dict(to=i64(7, -1))
    yield "reshape-negative", [node("Reshape", ["h", "to"], ["y"])], dict(to=i64(-5, 8))
    yield "reshape-two-unknown", [node("Reshape", ["h", "to"], ["y"])], dict(to=i64(-1, -1))
    yield "expand-huge", [node("Expand", ["h", "to"], ["y"])], dict(to=i64(2**20, 2**20, 1, 1, 8))
    yield "expand-overflow", [node("Expand", ["h", "to"], ["y"])], dict(to=i64(2**40, 2**40, 1, 1, 8))
    yield "expand-mismatch", [node("Expand", ["h", "to"], ["y"])], dict(to=i64(1, 1, 9))
    yield "tile-huge", [node("Tile", ["h", "to"], ["y"])], dict(to=i64(2**20, 2**20, 1))
    yield "tile-negative", [node("Tile", ["h", "to"], ["y"])], dict(to=i64(-1, 1, 1))
    yield "zeros-huge", [node("ConstantOfShape", ["to"], ["z"]), node("Add", ["h", "z"], ["y"])], dict(to=i64(2**30, 2**30, 8))
    yield "range-huge", [node("Range", ["a", "b", "c"], ["r"]), node("Cast", ["r"], ["z"], to=1), node("Add", ["h", "z"], ["y"])], dict(a=np.int64(0), b=np.int64(2**60), c=np.int64(1))
    yield "pad-huge", [node("Pad", ["h", "to"], ["y"])], dict(to=i64(0, 0, 0, 2**30, 2**30, 0))
    yield "onehot-huge", [node("Cast", ["h"], ["i"], to=7), node("OneHot", ["i", "depth", "v"], ["y"])], dict(depth=np.int64(2**50), v=np.float32([0, 1]))
    yield "einsum", [node("Einsum", ["h", "w"], ["y"], equation="bsk,kn->bsq")], {}
    yield "einsum-ranks", [node("Einsum", ["h", "w"], ["y"], equation="bsxk,kn->bsn")], {}
    yield "outer-product-huge", [node("Reshape", ["h", "flat"], ["a"]), node("Expand", ["a", "wide"], ["e"]), node("Transpose", ["e"], ["t"], perm=[1, 0]), node("MatMul", ["t", "e"], ["y"])], dict(flat=i64(-1, 1), wide=i64(1, 2**22))


def chain(n, times=1):
    """f0 calls f1 calls … ; each `times` times."""
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    for i in range(n):
        call = [node(f"Bad{i + 1}", ["a"], ["o"], domain="f")] * (i + 1 < n) or [node("Relu", ["a"], ["o"])]
        if i + 1 < n and times > 1:
            call = [node(f"Bad{i + 1}", ["a"], [f"o{t}"], domain="f") for t in range(times)]
            call.append(node("Sum", [f"o{t}" for t in range(times)], ["o"]))
        yield helper.make_function("f", f"Bad{i}", ["a"], ["o"], call, sets)


def functions():
    call = [node("Bad0", ["h"], ["y"], domain="f", name="call")]
    for n in (65, 100, 1000, 8437):
        yield f"chain-{n}", call, chain(n)
    for n, times in ((20, 2), (24, 2), (60, 2), (10, 8), (64, 100)):
        yield f"laughs-{n}-{times}", call, chain(n, times)


def hostile(text):
    names = dict(x=f"x{text}", y=f"y{text}")
    m = good()
    for n in m.graph.node:
        n.name += text
        n.input[:] = [names.get(i, i) for i in n.input]
        n.output[:] = [names.get(o, o) for o in n.output]
    m.graph.input[0].name, m.graph.output[0].name = names["x"], names["y"]
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param += text
    m.graph.name += text
    m.producer_name, m.doc_string = f"p{text}", f"d{text}"
    m.metadata_props.add(key=f"k{text}", value=f"v{text}")
    m.metadata_props.add(key="onnx_osplus.version", value=f"v{text}")
    return m


HOSTILE = {
    "escape": "\x1b[2J\x1b]0;owned\x07", "newline": "\nwrote out.onnx", "return": "\rwrote out.onnx", "bell": "\x07",
    "backspace": "\x08" * 8, "delete": "\x7f", "csi": "\x9b31m", "next-line": "\x85", "bidi": "\u202e", "isolate": "\u2066",
    "separator": "\u2028", "zero-width": "\u200b", "tab": "\t", "null": "\0", "vertical": "\x0b",
}  # fmt: skip


def models():
    for name, data in containers():
        yield Attack(f"container-{name}", MODEL, data)
    relu = [node("Relu", ["h"], ["y"], name="last")]
    for name, tensor in tensors():
        yield Attack(f"tensor-{name}", MODEL, raw(model(relu, extra=[tensor])), names=("bad_tensor",))
        constant = node("Constant", [], ["c"], name="bad_node", value=tensor)
        yield Attack(f"constant-{name}", MODEL, raw(model([constant, *relu])), names=("bad_tensor",))
    for name, tensor, files in externals():
        yield Attack(f"external-{name}", MODEL, raw(model(relu, extra=[tensor])), names=("bad_tensor",), beside=files)
    for name, nodes, *constants in graphs():
        yield Attack(f"graph-{name}", MODEL, raw(model(nodes, *constants)), needs=GRAPH, names=("bad_", "list of graph outputs", "is defined twice"))
    for name, nodes in arities():
        yield Attack(f"arity-{name}", MODEL, raw(model(nodes)), needs=GRAPH, names=("bad_node",))
    for name, bad in attributes():
        bad.name = "bad_node"
        yield Attack(f"attribute-{name}", MODEL, raw(model([bad], ATTRIBUTE_CONSTANTS)), needs=GRAPH, names=("bad_node",))
    for name, nodes, constants in runs():
        for n in nodes:
            n.name = f"bad_{n.op_type}"
        yield Attack(f"run-{name}", MODEL, raw(model(nodes, constants)), needs=RUN, names=("bad_",))
    for name, call, bodies in functions():
        yield Attack(f"function-{name}", MODEL, raw(model(call, functions=bodies)), needs=GRAPH, names=("Bad",))
    for name, text in HOSTILE.items():
        yield Attack(f"names-{name}", MODEL, raw(hostile(text)), needs=NONE)
    # A command may do its work on these, or refuse them; it must not fall over.
    for name, nodes, constants in more.odd_graphs():
        yield Attack(f"odd-{name}", MODEL, raw(model(nodes, constants)), needs=NONE)
    for name, call, bodies in more.recursive():
        yield Attack(f"recursive-{name}", MODEL, raw(model(call, functions=bodies)), needs=NONE)
    for name, edit in more.edited():
        m = good()
        edit(m)
        yield Attack(f"edited-{name}", MODEL, raw(m), needs=GRAPH if name == "input-twice" else NONE, names=("`x` is defined twice",))
    for count in (0, 37):
        nodes = [node("QuantizeLinear", ["h", "odd"], ["q"], name="bad_q"), node("DequantizeLinear", ["q", "odd"], ["y"], name="bad_d")]
        yield Attack(f"scales-{count}", MODEL, raw(model(nodes, dict(odd=np.ones(count, np.float32)))), needs=RUN, names=("bad_q",))
    for name, shape in {"wide": (2**30, 2**30, 8), "long": (1, 2**40, 8), "overflow": (2**40, 2**40, 8)}.items():
        yield Attack(f"input-{name}", MODEL, raw(model(relu, inputs=[value("x", *shape)])), needs=RUN, names=("x",))


# --------------------------------------------------------------------------------------------------------------- data


def npy(header, body=b"", version=(1, 0), length=None):
    text = header.encode("latin1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + body


def header(shape="(4, 4)", descr="'<i8'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def array(a):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(a), allow_pickle=True)
    return out.getvalue()


IDS = np.arange(16, dtype=np.int64).reshape(4, 4)


def npys():
    body = IDS.tobytes()
    yield "empty", b""
    yield "magic", b"\x93NUMPX" + array(IDS)[6:]
    yield "magic-only", b"\x93NUMPY"
    yield "version-9", npy(header(), body, version=(9, 0))
    yield "no-header", npy("", body)
    yield "header-cut", npy(header(), b"", length=500)
    yield "header-64k", npy(header()[:-1] + " " * 65000 + "\n", body)
    yield "header-4g", npy(header(), body, version=(2, 0), length=2**32 - 1)
    for depth in (5, 30, 180, 3000):
        yield f"brackets-{depth}", npy(header(shape="(" * depth + ")" * depth), body)
        yield f"lists-{depth}", npy(header(descr="[" * depth + "]" * depth), body)
    yield "dictionaries", npy("{'a':" * 200 + "}" * 200, body)
    yield "unclosed", npy("{'descr': ((((((((((((((((((((((((((((((((((", body)
    for descr in ("'|O'", "'<U4'", "'|S4'", "'<c8'", "'<m8'", "'|V8'", "'<f16'", "'<i3'", "'i8'", "''", "[('a', '<i8')]", "7"):
        yield f"descr-{descr.strip(chr(39)).strip('[]').replace(' ', '').replace('<', '').replace('|', '')}", npy(header(descr=descr), body)
    for shape in ("(-4, 4)", "(1000000000, 0)", "(0, 4)", "(4611686018427387904, 8)", "(99999999999999999999, 1)", "(4, 5)", "()", "4", "(4.0, 4)", "('a',)", "(1000000000000,)"):
        yield f"shape-{shape}".replace(" ", ""), npy(header(shape=shape), body)
    yield "no-shape", npy("{'descr': '<i8', 'fortran_order': False}\n", body)
    yield "order", npy(header(order="7"), body)
    yield "object", array(np.array([[{}]], dtype=object))
    yield "float", array(IDS + 0.5)
    yield "nan", array(IDS * np.nan)
    yield "negative-id", array(IDS - 2**40)
    yield "large-id", array(IDS + 2**40)
    yield "rank-1", array(IDS.ravel())
    yield "rank-4", array(IDS.reshape(2, 2, 2, 2))


def archive(members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as z:
        for name, data in members:
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compress_type=compression)
    return out.getvalue()


def bomb(name, megabytes):
    """A member of zeros, declared as an array of as many bytes."""
    head = npy(header(shape=f"({megabytes << 17},)"))
    out = io.BytesIO()
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(out, "w") as z:
        with z.open(entry, "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(megabytes):
                member.write(bytes(1 << 20))
    return out.getvalue()


def lies(data, size):
    """The same archive with another size of the unpacked member, in both places."""
    data = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        where = data.index(mark)
        data[where + at : where + at + 4] = struct.pack("<I", size)
    return bytes(data)


def npzs():
    ids = ("input_ids.npy", array(IDS))
    whole = archive([ids])
    yield "empty", b""
    yield "no-zip", b"PK\x03\x04 is no archive"
    yield "no-member", archive([])
    yield "cut", whole[: len(whole) // 2]
    yield "directory-cut", whole[:-10]
    yield "unknown", archive([ids, ("nobody.npy", array(IDS))])
    yield "no-npy", archive([ids, ("readme.txt", b"hello")])
    yield "folder", archive([ids, ("sub/", b"")])
    yield "up", archive([("../input_ids.npy", array(IDS))])
    yield "absolute", archive([("/input_ids.npy", array(IDS))])
    yield "empty-name", archive([(".npy", array(IDS))])
    yield "no-array", archive([("input_ids.npy", b"hello")])
    yield "nested", archive([("input_ids.npy", npy(header(shape="(" * 60 + ")" * 60)))])
    yield "says-less", lies(archive([ids]), 10)
    yield "says-more", lies(archive([ids]), 10_000)
    yield "says-4g", lies(archive([ids]), 2**32 - 2)
    broken = bytearray(whole)
    broken[60] ^= 0xFF
    yield "crc", bytes(broken)
    encrypted = bytearray(whole)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(mark) + at] |= 1
    yield "encrypted", bytes(encrypted)
    method = bytearray(whole)
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        method[method.index(mark) + at] = 99
    yield "method-99", bytes(method)
    yield "rows", archive([ids, ("attention_mask.npy", array(IDS[:3]))])
    yield "shape", archive([("input_ids.npy", array(IDS[None]))])
    yield "bomb", bomb("input_ids.npy", 1100)
    yield "bomb-unknown", bomb("nobody.npy", 300)


def pbs():
    ids = numpy_helper.from_array(IDS, "input_ids")
    whole = ids.SerializeToString()
    yield "empty", b""
    yield "text", b"hello, world"
    yield "cut", whole[:-5]
    yield "negative", tensor_of([-4, 4], TensorProto.INT64, IDS.tobytes(), "input_ids").SerializeToString()
    yield "overflow", tensor_of([2**62, 8], TensorProto.INT64, IDS.tobytes(), "input_ids").SerializeToString()
    yield "short", tensor_of([4, 5], TensorProto.INT64, IDS.tobytes(), "input_ids").SerializeToString()
    yield "type-99", tensor_of([4, 4], 99, IDS.tobytes(), "input_ids").SerializeToString()
    yield "strings", helper.make_tensor("input_ids", TensorProto.STRING, [1], [b"a"]).SerializeToString()


def data():
    for suffix, kinds in ((".npy", npys()), (".npz", npzs()), (".pb", pbs())):
        for name, content in kinds:
            # Some are about one input, wherever its data is from.
            names = (f"bad{suffix}", "input_ids", "input_0.pb")
            yield Attack(f"{suffix[1:]}-{name}", DATA, content, needs=("quantize", "inspect", "verify"), names=names, suffix=suffix)


def attacks():
    return [*models(), *data()]


def write(attack, folder):
    """The file of an attack, and those beside it, in a folder of its own; the path to give to a command."""
    folder = folder / "".join(c if c.isalnum() or c in "-_." else "_" for c in attack.name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in attack.beside.items():
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
    name = "input_0.pb" if attack.suffix == ".pb" else f"bad{attack.suffix}"
    (folder / name).write_bytes(attack.content)
    return folder if attack.suffix == ".pb" else folder / name


if __name__ == "__main__":
    for each in attacks():
        print(write(each, Path(sys.argv[1])))
