"""What the library tells ONNX Runtime of shapes, against a table of its C functions that writes down the calls."""

import json
import subprocess
import sys

import pytest

from laurel_graph.runtime import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the library of kernels is not built")

SCRIPT = """
import ctypes, json, sys

P, N = ctypes.c_void_p, ctypes.c_size_t
AXES = {10: int(sys.argv[2]), 11: int(sys.argv[3])}  # of x and f, by the handle of what is known of them
operators, told = [], []

def new_domain(name, out):
    out[0] = 1

def add(domain, op):
    operators.append(op)

def input_shape(context, index, out):
    out[0] = 10 + index

def count(info, out):
    out[0] = AXES[info]

def tell(context, index, info):
    told.append([index, info])

SLOTS = {
    26: ctypes.CFUNCTYPE(P, ctypes.c_char_p, ctypes.POINTER(P))(new_domain),
    27: ctypes.CFUNCTYPE(P, P, P)(add),
    28: ctypes.CFUNCTYPE(P, P, P)(lambda options, domain: None),
    61: ctypes.CFUNCTYPE(P, P, ctypes.POINTER(N))(count),
    62: ctypes.CFUNCTYPE(P, P, P, N)(lambda info, dims, count: ctypes.memset(dims, 1, 8 * count) and None),
    63: ctypes.CFUNCTYPE(P, P, P, N)(lambda info, names, count: None),
    268: ctypes.CFUNCTYPE(P, P, N, ctypes.POINTER(P))(input_shape),
    270: ctypes.CFUNCTYPE(P, P, N, P)(tell),
    271: ctypes.CFUNCTYPE(P, P, P, N)(lambda info, names, count: None),
}
table = (P * 279)()
for number, entry in SLOTS.items():
    table[number] = ctypes.cast(entry, P).value
get = ctypes.CFUNCTYPE(P, ctypes.c_uint32)(lambda version: ctypes.addressof(table))
base = (P * 2)(ctypes.cast(get, P).value, None)
library = ctypes.CDLL(sys.argv[1])
library.laurel_select(b"Laurel_LR_LayerNorm")
assert not library.RegisterCustomOps(None, base) and len(operators) == 1
fields = (P * 20).from_address(operators[0])  # the version, then InferOutputShapeFn as the nineteenth callback
ctypes.CFUNCTYPE(P, P, P)(fields[19])(operators[0], None)
print(json.dumps(told))
"""


def told_for(axes_of_x, axes_of_f):
    command = [sys.executable, "-c", SCRIPT, str(library_path()), str(axes_of_x), str(axes_of_f)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_the_first_output_gets_a_shape_because_a_node_may_have_no_other():
    assert told_for(3, 3) == [[0, 10]]


def test_y_gets_the_shape_of_f_when_nothing_is_known_of_x():
    assert told_for(0, 3) == [[0, 11]]


def test_nothing_is_told_when_nothing_is_known():
    assert told_for(0, 0) == []
