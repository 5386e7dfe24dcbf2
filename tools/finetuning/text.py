"""Text as training data of a language model: read, tokenised as the model's own tokenizer does, cut into samples.

A file of plain text is one document; each line of a ``.jsonl`` file and each row of a ``.parquet`` file is one, with
``text``, with ``prompt`` and ``completion``, or with ``messages`` (``role`` and ``content``), which go through the chat
template that lies beside the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DataError
from laurel_graph.tools.callables import is_reference
from laurel_graph.tools.dependencies import missing

from .losses import IGNORED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 512
"""Tokens of a sample where neither the user nor the model says less."""
FORMS = "rows with text, with prompt and completion, or with messages"
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_COLUMNS = ("messages", "prompt", "completion", "text")


@dataclass(frozen=True)
class Document:
    """One text, and which part of it is to be learned.

    Attributes:
        text: the text.
        learned: spans ``[start, end)`` of characters that a model is to write by itself.
        whole: it ends where the text ends by itself: no end-of-text token follows.
    """

    text: str
    learned: tuple[tuple[int, int], ...]
    whole: bool = False


@dataclass(frozen=True)
class TextOptions:
    """How text becomes samples.

    Attributes:
        folder: where ``tokenizer.json`` and its configs are.
        length: tokens of a sample.
        packed: documents follow each other in one stream that is cut into samples; else each starts a sample of its
            own. ``None`` packs everything but conversations.
        completions: learn completions and answers alone, not the prompts.
    """

    folder: Path
    length: int
    packed: bool | None = None
    completions: bool = False


def is_text(source: str) -> bool:
    """Whether a source of data is a file of text, by its name."""
    path = Path(source)
    if is_reference(source) or path.suffix not in _SUFFIXES or not path.is_file():
        return False
    return path.suffix != ".parquet" or bool(set(_COLUMNS) & set(_parquet_columns(path)))


def read_text(source: str, options: TextOptions) -> dict[str, NDArray[np.int64]]:
    """Returns ``input_ids``, ``attention_mask`` and ``labels``, each ``(N, length)``, int64; labels are not shifted.

    Raises:
        DataError: the file is empty, damaged or holds rows of another form, or there is no tokenizer.
        DependencyError: tokenizers, or what a chat template or parquet needs, is not installed.
    """
    tokenizer = load_tokenizer(options.folder)
    ending = _end_of_text(options.folder, tokenizer)
    documents = list(_documents(Path(source), options.folder))
    packed = options.packed if options.packed is not None else not any(one.whole for one in documents)
    streams: list[tuple[list[int], list[int]]] = []
    for one in documents:
        ids, labels = _encoded(tokenizer, one, ending, options.completions)
        if packed and streams:
            streams[0][0].extend(ids)
            streams[0][1].extend(labels)
        elif ids:
            streams.append((ids, labels))
    return _samples(source, streams, options.length)


def _samples(source: str, streams: list[tuple[list[int], list[int]]], length: int) -> dict[str, NDArray[np.int64]]:
    cuts = [
        (ids[start : start + length], labels[start : start + length])
        for ids, labels in streams
        for start in range(0, len(ids), length)
    ]
    cuts = [(ids, labels) for ids, labels in cuts if any(label != IGNORED for label in labels[1:])]
    if not cuts:
        raise DataError(f"{source}: nothing to learn in it: expected texts of at least two tokens.")
    width = max(len(ids) for ids, _ in cuts)
    found = {
        "input_ids": np.zeros((len(cuts), width), np.int64),
        "attention_mask": np.zeros((len(cuts), width), np.int64),
        "labels": np.full((len(cuts), width), IGNORED, np.int64),
    }
    for row, (ids, labels) in enumerate(cuts):
        found["input_ids"][row, : len(ids)] = ids
        found["attention_mask"][row, : len(ids)] = 1
        found["labels"][row, : len(ids)] = labels
    return found


def _encoded(tokenizer: Tokenizer, one: Document, ending: int | None, completions: bool) -> tuple[list[int], list[int]]:
    """Returns token ids and what is to be learned of them."""
    encoding = tokenizer.encode(one.text, add_special_tokens=not one.whole)
    ids = list(encoding.ids)
    labels = list(ids)
    if completions:
        for place, (start, end) in enumerate(encoding.offsets):
            inside = any(first <= start < last and end > start for first, last in one.learned)
            if not inside:
                labels[place] = IGNORED
    if not one.whole and ending is not None and (not ids or ids[-1] != ending):
        ids.append(ending)
        labels.append(ending)
    return ids, labels


def load_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a model folder.

    Raises:
        DataError: there is none, or it is damaged.
        DependencyError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing("reading text", "tokenizers") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder} has no tokenizer.json; name the folder that has it with --tokenizer.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path} is no tokenizer: {' '.join(str(error).split())[:200]}.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    return config if isinstance(config, dict) else {}


def _token_text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _end_of_text(folder: Path, tokenizer: Tokenizer) -> int | None:
    text = _token_text(_config(folder), "eos_token")
    found = tokenizer.token_to_id(text) if text else None
    return None if found is None else int(found)


def _documents(path: Path, folder: Path) -> Iterator[Document]:
    if path.suffix == ".txt":
        text = _read(path)
        yield Document(text, ((0, len(text)),))
        return
    template = None
    for place, row in _rows(path):
        where = f"{path}, {place}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: expected an object ({FORMS}), found {type(row).__name__}.")
        if row.get("messages") is not None:
            template = template or ChatTemplate(folder)
            yield template.document(row["messages"], where)
        elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            text = row["prompt"] + row["completion"]
            yield Document(text, ((len(row["prompt"]), len(text)),))
        elif isinstance(row.get("text"), str):
            yield Document(row["text"], ((0, len(row["text"])),))
        else:
            raise DataError(f"{where}: expected {FORMS}, found {', '.join(map(repr, row)) or 'nothing'}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected text in UTF-8.") from None


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=[name for name in _parquet_columns(path) if name in _COLUMNS])
        for number, row in enumerate(table.to_pylist()):
            yield f"row {number}", row
        return
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: no JSON ({error}).") from None


def _parquet_columns(path: Path) -> list[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing(f"{path}: reading .parquet", "pyarrow") from error
    try:
        return list(pq.read_schema(path).names)
    except Exception as error:  # Arrow and the file system each raise their own
        raise DataError(f"{path}: not a readable .parquet file ({' '.join(str(error).split())[:300]}).") from error


class ChatTemplate:
    """The chat template of a model folder: rendered in a sandbox, as it comes with the model."""

    def __init__(self, folder: Path) -> None:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise missing("a chat template", "jinja2") from error
        config = _config(folder)
        source = config.get("chat_template")
        if isinstance(source, list):
            source = next((item.get("template") for item in source if item.get("name") == "default"), None)
        beside = folder / "chat_template.jinja"
        source = _read(beside) if beside.is_file() else source
        if not isinstance(source, str):
            raise DataError(
                f"{folder} has no chat template, which messages need: give rows with text, or with prompt and "
                "completion."
            )
        self._where = folder
        self._tokens = {name: _token_text(config, name) for name in ("bos_token", "eos_token", "pad_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # jinja2's errors
            raise DataError(f"the chat template of {folder} cannot be read: {error}.") from error

    def render(self, messages: list[Any], prompt: bool) -> str:
        """Returns a conversation as text; with *prompt*, up to where the next answer begins."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=prompt, tools=None, **self._tokens)
        except Exception as error:  # whatever a template raises
            raise DataError(f"the chat template of {self._where} refuses a conversation: {error}.") from error

    def document(self, messages: Any, where: str) -> Document:
        """Returns a conversation as a document in which the answers are to be learned.

        Raises:
            DataError: no list of messages, or the template does not render a conversation step by step.
        """
        if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
            raise DataError(f"{where}: messages must be a list of objects with role and content.")
        text = self.render(messages, False)
        learned = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:place], True) if place else ""
                after = self.render(messages[: place + 1], False)
                if not (text.startswith(after) and after.startswith(before)):
                    before = self.render(messages[:place], False) if place else ""
                if not (text.startswith(after) and after.startswith(before)):
                    raise DataError(
                        f"{where}: the chat template writes the conversation otherwise once it goes on, so that the "
                        "answers in it cannot be told; give rows with prompt and completion."
                    )
                learned.append((len(before), len(after)))
        return Document(text, tuple(learned), whole=True)


def _raise(message: str) -> None:
    raise ValueError(message)
