"""Commands for the passes one by one: ``run`` puts any in a row, ``passes`` lists them with their options."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laurel_graph.tools.console import note, print_json, print_table, progress, quiet_runtime, say

from .arguments import Json, Model, Output, load_model

if TYPE_CHECKING:
    from laurel_graph.passes import PassResult, Pipeline
    from laurel_graph.passes.options import Option


def run(
    model: Model,
    output: Output,
    steps: Annotated[
        list[str],
        typer.Option(
            "--pass",
            help="A pass, as NAME or NAME:OPTION=VALUE,...; your own as MODULE:ATTRIBUTE. May be repeated; they run in "
            "that order. `laurel passes` lists them.",
        ),
    ],
    trace: Annotated[
        Path | None, typer.Option(help="A folder for the graph before and after each pass, and what changed.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hold what passes require and ensure against the graph.")
    ] = False,
    json: Json = False,
) -> None:
    """Run any passes in a row on MODEL and write what comes out."""
    from laurel_graph.model_folder import writes_folder
    from laurel_graph.outputs import check_outputs
    from laurel_graph.outputs.folder import check_folder
    from laurel_graph.passes.base import Pipeline
    from laurel_graph.passes.registry import parse_pass
    from laurel_graph.tools.callables import current_folder
    from laurel_graph.tools.inputs import check_model_output, source_files

    read = [file for text in steps for file in _files_of(text)]
    if writes_folder(Path(model), output):
        check_folder(output, inputs=(model, *read))
    else:
        check_outputs(output, inputs=(*source_files(model), *read))
    with current_folder():
        pipeline = Pipeline(tuple(parse_pass(text, _load) for text in steps), check, trace)
        read += [
            Path(value) for each in pipeline.passes for value in each.options().values() if isinstance(value, Path)
        ]
        check_model_output(output, model, *read)
        if any(each.last for each in pipeline.passes):
            quiet_runtime()
        with progress(f"running {len(steps)} passes on {model}"):
            result = _run(pipeline, model, output, read)
    if json:
        shown = {"model": model, "output": output, "passes": [step.to_dict() for step in result.steps]}
        print_json({**shown, "counters": dict(result.report.counters)})
        return
    for step in result.steps:
        counters = ", ".join(f"{count} {word}" for word, count in step.report.counters.items() if count)
        say(f"{step.ran.name}: {counters or ('changed' if step.changed else 'nothing changed')}")
        for site in step.report.sites:
            if site.change != "rejected":
                say(f"  {site.site}: {site.change}{f' ({site.reason})' if site.reason else ''}")
    say(f"wrote {output}")
    for line in result.report.notes:
        note(f"note: {line}")


def passes(json: Json = False) -> None:
    """List the passes that `laurel run --pass` knows, with their options."""
    from laurel_graph.passes.options import options_of
    from laurel_graph.passes.registry import as_pass, known_passes, pass_class

    listed: list[dict[str, Any]] = []
    for name, origin in known_passes().items():
        kind = pass_class(name)
        ready: Any = kind if isinstance(kind, type) else as_pass(kind, name)
        text = (ready.__doc__ or "").strip().partition("\n")[0] if isinstance(ready, type) else ready.text
        options = options_of(kind).values() if isinstance(kind, type) else ()
        listed.append(
            {
                "pass": name,
                "text": text,
                "takes": list(ready.takes),
                "requires": list(ready.requires),
                "ensures": list(ready.ensures),
                "from": origin,
                "options": [_shown(each) for each in options],
            }
        )
    if json:
        print_json({"passes": listed})
        return
    print_table(
        "passes", ("pass", "takes", "what it does"), [(p["pass"], ", ".join(p["takes"]), p["text"]) for p in listed]
    )
    rows = [(p["pass"], o["name"], o["kind"], o["default"], o["text"]) for p in listed for o in p["options"]]
    say("")
    print_table("options", ("pass", "option", "values", "default", "what it is for"), rows)


def _shown(option: Option) -> dict[str, Any]:
    default = ", ".join(map(str, option.default)) if isinstance(option.default, (tuple, dict)) else option.default
    text = option.text.replace(":class:", "").replace("`", "")
    return {**asdict(option), "kind": option.values, "default": default, "text": text}


def _files_of(text: str) -> tuple[Path, ...]:
    """Returns the file of a user's own pass, so that it is never written."""
    from laurel_graph.passes.registry import known_passes
    from laurel_graph.tools.callables import is_reference
    from laurel_graph.tools.inputs import source_files

    reference = ":".join(text.split(":")[:2])
    own = text.partition(":")[0] not in known_passes() and is_reference(reference)
    return source_files(reference) if own else ()


def _load(reference: str) -> Any:
    """Returns a user's own pass or function; the current folder is searched too."""
    from laurel_graph.tools.callables import load_attribute

    return load_attribute(reference, "--pass")


def _run(pipeline: Pipeline, model: str, output: Path, read: list[Path]) -> PassResult:
    target, args, kwargs, shapes = load_model(model)
    from laurel_graph.model_folder import rewritten, writes_folder
    from laurel_graph.passes.files import run_on_file

    if isinstance(target, Path) and writes_folder(target, output):
        with rewritten(target, output, inputs=read) as new:
            result = run_on_file(pipeline, new.source, new.graph, inputs=read)
        return replace(result, report=replace(result.report, notes=(*result.report.notes, *new.notes)))
    if isinstance(target, Path):
        return run_on_file(pipeline, target, output, inputs=read)
    from laurel_graph.passes.pipeline import run_on_module
    from laurel_graph.tools.inputs import source_files

    return run_on_module(pipeline, target, args, kwargs, shapes, output, (*read, *source_files(model)))
