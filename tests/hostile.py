"""Names that hostile, careless or merely foreign files hold; a payload that runs leaves a mark that a test can see."""

import builtins

MARK = "laurel_owned"
RUN = f'setattr(__import__("builtins"),"{MARK}",1)'

PAYLOADS = (
    f'x");{RUN};("',
    f'training")\n{RUN}\nx = ("',
    f"x\n{RUN}\n",
    f"x\r{RUN}\r",
    f'"""\n{RUN}\n"""',
    f"x=({RUN})",
    f"x:{RUN}",
    f"x, y={RUN}",
    f"x): {RUN} #",
    f"x = {RUN}; y",
    f"'+str({RUN})+'",
    f"{{{RUN}}}",
    f"{{{{{RUN}}}}}",
    "x'); import os; os.system('exit 1') #",
)

NAMES = (
    *PAYLOADS,
    *(
        'a"b',
        "a'b",
        "a\\",
        "\\",
        '"',
        "a\nb",
        "a\rb",
        "a\tb",
        "a\0b",
        "\0",
        "\x1b[31mred\x1b[0m",
        "\x1b]8;;http://x\x07",
    ),
    *("a\u2028b", "a\u202eb", "\u200f", "\ufeff", "\u00e9", "e\u0301", "\u017felf", "\u540d\u524d", "\U0001f600"),
    *("class", "None", "lambda", "self", "torch", "inf", "nan", "getattr", "slice", "device", "print", "input"),
    *("forward", "training", "_parameters", "_modules", "graph", "code", "meta", "recompile", "host", "float_type"),
    *("__class__", "__init__", "__dict__", "_", "__", "0", "0a", "control_flow", "laurel", "laurel.x", "x.A.B"),
    *("a.b", "a_b", "a/b", "a:b", "a b", "a-b", ".", "..", "a.", ".a", "a..b", "../../etc/passwd", "/etc/passwd"),
    *(
        "input_1",
        "getattr_1",
        "x_1",
        "x",
        "add",
        "add_1",
        "output",
        "as_float",
        "laurel_graph_importer_convert_as_float",
    ),
    *(
        "{{7*7}}",
        "{% raw %}",
        "<script>alert(1)</script>",
        "&lt;",
        "--></svg>",
        "%s",
        "%(x)s",
        "${x}",
        "$(reboot)",
        "`x`",
    ),
    *(
        "[red]",
        "[/red]",
        "[link=http://x]x[/link]",
        "*",
        "?",
        "[ab]",
        "[",
        "(a+)+$",
        "~",
        "-rf",
        "n" * 10_000,
        "." * 99,
    ),
    *(f"{'n' * 10_000}{i}" for i in range(2)),
)
"""Names of every hostile kind, each once; what protobuf can hold, so no lone surrogates."""


def executed():
    """Tells whether a payload ran since the last call."""
    ran = hasattr(builtins, MARK)
    if ran:
        delattr(builtins, MARK)
    return ran
