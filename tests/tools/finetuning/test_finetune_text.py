"""Text becomes samples as the model's own tokenizer and chat template say, or is refused in one sentence."""

import json

import numpy as np
import pytest
from folder_models import TEMPLATE, tokenizer_json

from laurel_graph.errors import DataError
from laurel_graph.tools.finetuning.losses import IGNORED
from laurel_graph.tools.finetuning.text import TextOptions, is_text, read_text

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def read(folder, name, content, length=16, **options):
    path = folder / name
    if isinstance(content, list):
        content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in content)
    path.write_text(content)
    assert is_text(str(path))
    return read_text(str(path), TextOptions(folder, length, **options))


def text_of(folder, ids):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return "".join(tokenizer.id_to_token(int(i)) for i in ids)


def learned(folder, found):
    """The tokens that are learned, of each sample."""
    return [text_of(folder, row[row != IGNORED]) for row in found["labels"]]


def test_file_of_text_is_one_stream_that_ends(folder):
    found = read(folder, "a.txt", "the cat sat on the mat.", 10)
    assert [text_of(folder, row[mask > 0]) for row, mask in zip(found["input_ids"], found["attention_mask"])] == [
        "the cat sa", "t on the m", "at.</s>",
    ]  # fmt: skip
    assert learned(folder, found) == ["the cat sa", "t on the m", "at.</s>"]
    assert found["labels"].dtype == np.int64
    assert (found["labels"][2, 4:] == IGNORED).all()


def test_rows_are_packed_or_padded_as_asked(folder):
    rows = [{"text": "abc"}, {"text": "de"}]
    assert learned(folder, read(folder, "a.jsonl", rows, 5)) == ["abc</s>d", "e</s>"]
    assert learned(folder, read(folder, "a.jsonl", rows, 5, packed=False)) == ["abc</s>", "de</s>"]


def test_completions_alone_are_learned_when_asked(folder):
    rows = [{"prompt": "two and two is ", "completion": "four."}]
    assert learned(folder, read(folder, "a.jsonl", rows, 32)) == ["two and two is four.</s>"]
    assert learned(folder, read(folder, "a.jsonl", rows, 32, completions=True)) == ["four.</s>"]


def test_conversations_go_through_the_chat_template(folder):
    messages = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"}, {"role": "assistant", "content": "no"},
    ]  # fmt: skip
    rows = [{"messages": messages}, {"messages": messages[:2]}]
    whole = read(folder, "a.jsonl", rows, 64)
    text = "<s>user:hi</s><s>assistant:yes</s><s>user:so</s><s>assistant:no</s>"
    assert learned(folder, whole) == [text, text[: text.index("<s>user:so")]]
    answers = read(folder, "a.jsonl", rows, 64, completions=True)
    assert learned(folder, answers) == ["<s>assistant:yes</s><s>assistant:no</s>", "<s>assistant:yes</s>"]
    assert (answers["input_ids"] == whole["input_ids"]).all()


def test_generation_prompt_is_not_learned_where_the_template_has_one(folder):
    template = (
        "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}]
    assert learned(folder, read(folder, "a.jsonl", rows, 64, completions=True)) == ["yes</s>"]


def test_parquet_is_text_where_it_has_a_column_of_it(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["abc", "de"], "n": [1, 2]}), folder / "a.parquet")
    assert is_text(str(folder / "a.parquet"))
    found = read_text(str(folder / "a.parquet"), TextOptions(folder, 8, False))
    assert learned(folder, found) == ["abc</s>", "de</s>"]
    pq.write_table(pa.table({"input_ids": [[1, 2], [3, 4]]}), folder / "b.parquet")
    assert not is_text(str(folder / "b.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "nothing to learn"),
        ("a.jsonl", ["{"], "line 1: no JSON"),
        ("a.jsonl", [{"text": "abc"}, {"body": "x"}], "line 2: expected rows with text"),
        ("a.jsonl", ["3"], "line 1: expected an object"),
        ("a.jsonl", [{"messages": "hi"}], "must be a list"),
        ("a.jsonl", [{"messages": [{"content": "hi"}]}], "must be a list"),
    ],
)
def test_text_is_refused_in_one_sentence_when_it_is_none(folder, name, content, message):
    with pytest.raises(DataError, match=message):
        read(folder, name, content)


def test_template_that_rewrites_history_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    rows = [{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}]
    with pytest.raises(DataError, match="otherwise once it goes on"):
        read(folder, "a.jsonl", rows)


def test_template_runs_in_a_sandbox(folder):
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(DataError, match="refuses a conversation"):
        read(folder, "a.jsonl", [{"messages": [{"role": "user", "content": "b"}]}])


@pytest.mark.parametrize(("text", "message"), [(None, "no tokenizer.json"), ("{}", "is no tokenizer")])
def test_tokenizer_is_asked_for_when_there_is_none(folder, text, message):
    (folder / "tokenizer.json").unlink()
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder, "a.txt", "abc")
