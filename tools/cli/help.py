"""What ``--help`` shows: a summary that fits one line, options in groups, examples to copy."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from typer.core import TyperCommand

SUMMARIES = {
    "guide": "Say what comes next: commands with your file's names in them.",
    "inspect": "List every add: a residual connection, or why it is none.",
    "data-template": "Write an example of the data that a model trains on.",
    "transform": "Put LAuReL in the place of the residual connections.",
    "finetune": "Train the LAuReL tensors, all else frozen.",
    "sweep": "Train several variants, ranks and seeds; print a table.",
    "apply": "Put a saved adapter into a transformed model.",
    "remove": "Give the original back, bit for bit.",
    "inline": "Write plain nodes, for runtimes that know no functions.",
    "outline": "Put LAuReL nodes back in the place of plain ones.",
    "verify": "Hold two models against each other, site by site.",
    "deploy": "Fold and fuse for serving; verified before it is written.",
    "run": "Run any passes in a row.",
    "passes": "List the passes that `laurel run` knows.",
    "bench": "Measure latency, load time and memory, paired.",
    "report": "Write a page that shows what was learned.",
    "compare": "Hold several adapters or files of one base side by side.",
    "doctor": "Print versions, the kernels, and what is missing.",
}
"""One line each in ``laurel --help``: at most 63 characters, what is left of 80."""

EXAMPLES = {
    "guide": ("laurel guide model.onnx", "laurel guide folder"),
    "inspect": (
        "laurel inspect model.onnx",
        "laurel inspect model.onnx --only residual --json",
        "laurel inspect model.onnx --why /layer1/Add",
    ),
    "data-template": (
        "laurel data-template model.onnx -o data.npz",
        "laurel data-template model.onnx -o data.npz --loss mse --samples 100",
    ),
    "transform": (
        "laurel transform model.onnx -o model.laurel.onnx",
        "laurel transform model.onnx -o out.onnx --variant rw+lr+pa --rank 8",
        "laurel transform model.onnx -o out.onnx --override 'layer4.*=off'",
    ),
    "finetune": (
        "laurel finetune model.laurel.onnx --data train.npz -o tuned.onnx",
        "laurel finetune model.laurel.onnx --data train.npz --validation 0.2 \\",
        "    --loss cross_entropy --adapter tuned.safetensors -o tuned.onnx",
        "laurel finetune folder --data notes.txt --loss causal_lm -o tuned",
    ),
    "sweep": (
        "laurel sweep model.onnx --data train.npz --validation 0.2 --variants rw,lr",
        "laurel sweep model.onnx --data train.npz --validation 0.2 \\",
        "    --variants rw+lr --ranks 4,16 --seeds 0,1,2",
    ),
    "apply": (
        "laurel apply model.laurel.onnx tuned.safetensors -o tuned.onnx",
        "laurel apply folder tuned.safetensors -o tuned --match place",
    ),
    "remove": ("laurel remove model.laurel.onnx -o original.onnx",),
    "inline": ("laurel inline model.laurel.onnx -o plain.onnx",),
    "outline": ("laurel outline plain.onnx -o model.laurel.onnx",),
    "verify": (
        "laurel verify tuned.onnx served.onnx",
        "laurel verify tuned.onnx served.onnx --data samples.npz",
        "laurel verify model.onnx model.laurel.onnx --no-optimize",
    ),
    "deploy": (
        "laurel deploy tuned.onnx -o served.onnx",
        "laurel deploy tuned.onnx -o served.onnx --portable",
        "laurel deploy tuned.onnx -o served.onnx --data samples.npz",
    ),
    "run": (
        "laurel run model.onnx -o out.onnx --pass insert:variant=rw+lr,rank=8",
        "laurel run tuned.onnx -o out.onnx --pass fold --pass fuse --pass verify",
        "laurel run model.onnx -o out.onnx --pass my_module:my_pass --trace steps",
    ),
    "passes": ("laurel passes",),
    "bench": (
        "laurel bench served.onnx --against model.onnx",
        "laurel bench served.onnx --against model.onnx --threads 1 --cpu-time",
    ),
    "report": (
        "laurel report tuned.onnx -o page.html",
        "laurel report tuned.onnx --served served.onnx --against model.onnx \\\n      --training finetune.json",
        "laurel report tuned.onnx --png picture.png",
    ),
    "compare": (
        "laurel compare rw.safetensors lr.safetensors",
        "laurel compare model.onnx tuned.onnx served.onnx -o page.html",
        "laurel compare rw.onnx lr.onnx --training rw.json --training lr.json",
    ),
    "doctor": ("laurel doctor", "laurel doctor folder"),
}
"""Two or three a command, as a person would type them."""


_ORDER = ("Arguments", "Data and aim", "Text", "What trains", "Training", "Files", "Options")


class Command(TyperCommand):
    """A command whose help names its arguments in capitals, its options by panel, and its examples as they are."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what the line "Usage:" lists: ``MODEL`` whatever typer writes around the name of an argument."""
        return [_as_argument(piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options, each group under its own heading."""
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = "Options"
                if parameter.param_type_name == "argument":
                    heading, record = "Arguments", (_as_argument(record[0].partition(" ")[0]), record[1])
                else:
                    record = (record[0].replace("<list[", "<").replace("]>", ">"), record[1])
                groups[getattr(parameter, "rich_help_panel", None) or heading].append(record)
        for heading in sorted(groups, key=_ORDER.index):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples, line by line."""
        examples = EXAMPLES.get(self.name or "", ())
        if examples:
            formatter.write_paragraph()
            formatter.write("Examples:\n" + "".join(f"  {line}\n" for line in examples))


def _as_argument(piece: str) -> str:
    """Returns the name of an argument in capitals, in brackets where it may be left out; options as they are."""
    name = re.fullmatch(r"(\[?)\{?([a-z_]+|[A-Z_]+)(?:\.\.\.)?\}?(\]?)(\.\.\.)?", piece)
    return piece if name is None else f"{name[1]}{name[2].upper()}{name[3]}{name[4] or ''}"
