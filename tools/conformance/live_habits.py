"""What people do with a Hugging Face model, done with LAuReL attached, on tiny random models of several families.

``python -m laurel_graph.tools.conformance.live_habits [--only GLOB] [--habits NAME ...] [--json]``

Prints one row per family and one column per habit: ``ok``, ``-`` where the family has no such thing, or ``no`` with the
reason below. Needs transformers, peft and accelerate.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import laurel_graph as lg
from laurel_graph.tools.console import note, print_json, print_table
from laurel_graph.tools.zoo.architectures import silence
from laurel_graph.tools.zoo.detection import is_wanted, one_line

from .live_families import FAMILIES, Family


class NoSuchHabit(Exception):
    """The family does not do this."""


@dataclass
class Case:
    """One family, its base and the attached model with random residuals."""

    family: Family
    base: Any
    model: Any

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The example inputs, by name."""
        return self.family.inputs()

    def fresh(self) -> Any:
        """A copy of the attached model."""
        return copy.deepcopy(self.model)


def case_of(family: Family) -> Case:
    """Builds and attaches one family; the start is the same bits."""
    torch.manual_seed(0)
    base = family.build().eval().requires_grad_(False)
    model = copy.deepcopy(base)
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=2), kwargs=family.inputs())
    _equal(_output(model, family.inputs()), _output(base, family.inputs()))
    move(model)
    return Case(family, base, model)


def move(model: nn.Module) -> None:
    """Gives the residuals random values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2, generator=generator)


def _output(model: Any, named: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result = model(**named)
    return result.logits  # type: ignore[no-any-return]


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not torch.equal(found, wanted):
        raise AssertionError(f"differs by {(found - wanted).abs().max():.3g}")


def _close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-5) -> None:
    error = (found.float() - wanted.float()).abs().max().item()
    scale = wanted.float().abs().max().item()
    if not error <= tolerance * scale:
        raise AssertionError(f"differs by {error:.3g} at a scale of {scale:.3g}")


def _all_learn(model: nn.Module) -> None:
    trains = {name: p for name, p in model.named_parameters() if "laurel" in name}
    if not trains or not all(p.grad is not None and p.grad.isfinite().all() for p in trains.values()):
        raise AssertionError("a residual got no gradient")


# The habits -----------------------------------------------------------------------------------------------------------


def trainer(case: Case) -> None:
    """Trainer with bf16, which saves and resumes."""
    import transformers

    model = case.fresh().float().train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    row = {key: value[0] for key, value in case.family.labelled().items()}
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1, 2):
            arguments = transformers.TrainingArguments(
                output_dir=folder, per_device_train_batch_size=2, use_cpu=True, report_to=[], bf16=True, save_steps=1,
                max_steps=steps, disable_tqdm=True, learning_rate=1e-2,
            )  # fmt: skip
            own = transformers.Trainer(model=model, args=arguments, train_dataset=[row] * 8)
            own.train(resume_from_checkpoint=steps == 2)
    for name, parameter in model.named_parameters():
        if torch.equal(parameter, start[name]) == parameter.requires_grad:
            raise AssertionError(f"{name} {'did not train' if parameter.requires_grad else 'is frozen and changed'}")


def bf16(case: Case) -> None:
    """model.to(bfloat16), and autocast."""
    named = {k: v.bfloat16() if v.is_floating_point() else v for k, v in case.inputs.items()}
    if not _output(case.fresh().bfloat16(), named).isfinite().all():
        raise AssertionError("not finite")
    with torch.autocast("cpu", torch.bfloat16):
        _output(case.model, case.inputs)


def checkpointing(case: Case) -> None:
    """gradient_checkpointing_enable(): the same gradients."""
    gradients: list[dict[str, torch.Tensor]] = []
    for on in (False, True):
        model = case.fresh().train()
        if on:
            if not model.supports_gradient_checkpointing:
                raise NoSuchHabit
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model(**case.family.labelled()).loss.backward()
        _all_learn(model)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=f"the gradient of {name} differs")


def lengths(case: Case) -> None:
    """Inputs of another batch size and length."""
    named = case.family.longer()
    with lg.disabled(case.model):
        _equal(_output(case.model, named), _output(case.base, named))
    _output(case.model, named)


def without_labels(case: Case) -> None:
    """Called with and without labels, masks left out or given."""
    with torch.no_grad():
        labelled = case.model(**case.family.labelled())
    if labelled.loss is None or not labelled.loss.isfinite():
        raise AssertionError("labels give no loss")
    if case.model(**case.inputs).loss is not None:
        raise AssertionError("a loss without labels")


def generate(case: Case) -> None:
    """generate() with the cache, and left padding, gives the tokens that it gives without."""
    given = case.family.prompt()
    if not given:
        raise NoSuchHabit
    made = [
        case.model.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=cache)
        for cache in (True, False)
    ]
    _equal(*made)


def from_pretrained(case: Case) -> None:
    """save_pretrained of the base, save_adapter; from_pretrained, load_adapter."""
    with tempfile.TemporaryDirectory() as folder:
        case.base.save_pretrained(folder)
        lg.save_adapter(case.model, folder)
        loaded = type(case.base).from_pretrained(folder).eval()
        lg.load_adapter(loaded, folder, kwargs=case.inputs)
    _equal(_output(loaded, case.inputs), _output(case.model, case.inputs))


def deepcopy(case: Case) -> None:
    """copy.deepcopy computes the same; detached, it is the base."""
    own = case.fresh()
    _equal(_output(own, case.inputs), _output(case.model, case.inputs))
    _equal(_output(lg.detach(own), case.inputs), _output(case.base, case.inputs))


def torch_save(case: Case) -> None:
    """torch.save of the whole model."""
    file = io.BytesIO()
    try:
        torch.save(case.base, io.BytesIO())
    except RuntimeError as error:  # torch pickles no parametrised modules
        raise NoSuchHabit from error
    torch.save(case.model, file)
    file.seek(0)
    _equal(_output(torch.load(file, weights_only=False), case.inputs), _output(case.model, case.inputs))


def peft_on_top(case: Case) -> None:
    """get_peft_model on the attached model; both train."""
    import peft

    names = {name.rpartition(".")[2] for name, m in case.model.named_modules() if type(m).__name__ in _LINEAR}
    targets = sorted(names & {"query", "value", "q_proj", "v_proj", "q", "v", "c_attn"})
    wrapped = peft.get_peft_model(case.fresh(), peft.LoraConfig(r=2, target_modules=targets))
    lg.set_adapter(wrapped)
    _close(_output(wrapped, case.inputs), _output(case.model, case.inputs))
    wrapped(**case.inputs).logits.square().sum().backward()
    _all_learn(wrapped)


_LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")


def _forget_compiled() -> None:
    forget: Callable[[], None] = torch._dynamo.reset
    forget()


def _whole(model: nn.Module) -> Callable[..., Any]:
    whole: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    return whole  # type: ignore[no-any-return]


def compiled(case: Case) -> None:
    """torch.compile(fullgraph=True) computes the same; held against the base, which may not compile itself."""
    named = {**case.inputs, **({"use_cache": False} if case.family.prompt() else {})}
    _forget_compiled()
    try:
        with torch.no_grad():
            _whole(copy.deepcopy(case.base))(**named)
    except Exception as error:
        raise NoSuchHabit from error
    _forget_compiled()
    with torch.no_grad():
        found = _whole(case.fresh())(**named).logits
    _close(found, _output(case.model, case.inputs))


def dropout(case: Case) -> None:
    """Dropout is on in train(), off in eval()."""
    model = case.fresh().train()
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    if not any(rates) and not getattr(model.config, "attention_dropout", 0) and not getattr(model.config, "dropout", 0):
        raise NoSuchHabit
    if torch.equal(_output(model, case.inputs), _output(model, case.inputs)):
        raise AssertionError("two passes in train() are the same")
    _equal(_output(model.eval(), case.inputs), _output(case.model, case.inputs))


HABITS: dict[str, Callable[[Case], None]] = {
    "Trainer": trainer,
    "bf16": bf16,
    "checkpointing": checkpointing,
    "lengths": lengths,
    "labels": without_labels,
    "generate": generate,
    "from_pretrained": from_pretrained,
    "deepcopy": deepcopy,
    "torch.save": torch_save,
    "peft": peft_on_top,
    "compile": compiled,
    "dropout": dropout,
}
"""Name to what is done; it raises where something is not as it should be."""


def tried(case: Case, habit: str) -> str:
    """Returns "ok", "-" where the family has no such habit, or what went wrong."""
    try:
        with silence():
            HABITS[habit](case)
    except NoSuchHabit:
        return "-"
    except Exception as error:  # the model's and the libraries' own code runs
        return one_line(error)
    return "ok"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="live_habits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="*", help="names or globs of families, separated by commas")
    parser.add_argument("--habits", nargs="+", choices=list(HABITS), default=list(HABITS), help="habits to try")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    table: dict[str, dict[str, str]] = {}
    for name, family in FAMILIES.items():
        if not is_wanted(name, options.only):
            continue
        with suppress(BrokenPipeError):
            note(name)
        try:
            with silence():
                case = case_of(family)
        except Exception as error:  # likewise
            table[name] = dict.fromkeys(options.habits, f"attach: {one_line(error)}")
            continue
        table[name] = {habit: tried(case, habit) for habit in options.habits}
    wrong = [(n, h, text) for n, row in table.items() for h, text in row.items() if text not in ("ok", "-")]
    if options.json:
        print_json(table)
    else:
        short = [(name, *("no" if (name, h, t) in wrong else t for h, t in row.items())) for name, row in table.items()]
        print_table("habits", ("family", *options.habits), short)
        if wrong:
            print_table("what went wrong", ("family", "habit", "reason"), wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
