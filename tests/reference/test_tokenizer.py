"""`Tokenizer`: equal to transformers on the demo model, and templates that misbehave."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from auditor.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    TokenOutOfRangeError,
    TraceFieldError,
)
from auditor.reference.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "reference" / "demo" / "target"
OURS = Tokenizer.load(TARGET)
THEIRS = AutoTokenizer.from_pretrained(TARGET)
CHATS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Grüße, 世界 🙂 "}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "greet back"},
        {"role": "user", "content": "<|end|> inside"},
    ],
]


@pytest.fixture
def copy(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        shutil.copy(TARGET / name, tmp_path)
    return tmp_path


def with_template(directory, template):
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_conversations_are_transformers_conversations(messages, prompt):
    theirs = THEIRS.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert OURS.render(messages, add_generation_prompt=prompt) == theirs
    ids = THEIRS.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert OURS.encode_chat(messages, add_generation_prompt=prompt) == ids


def test_recorded_prompts_come_out_again():
    with gzip.open(ROOT / "tests" / "traces" / "vllm-cpu-bf16-plain.jsonl.gz", "rt") as file:
        for line in file:
            trace = json.loads(line)
            assert OURS.encode_chat(trace["messages"]) == trace["prompt_token_ids"]
            output = trace["output_token_ids"]
            assert OURS.decode(output[:-1] if output[-1] == 2 else output) == trace["text"]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_text_makes_the_round_trip_and_equals_transformers(text):
    ids = OURS.encode(text)
    assert ids == THEIRS.encode(text, add_special_tokens=False)
    assert OURS.encode(text, add_special_tokens=True) == THEIRS.encode(text)
    assert OURS.decode(ids) == text


def test_special_tokens():
    assert OURS.vocab_size == 4096
    assert OURS.eos_ids == (2,)
    assert OURS.special_ids == frozenset(range(7))
    assert OURS.decode([1, 5, 2]) == "<|bos|><|think|><|end|>"
    assert OURS.decode([1, 5, 2], skip_special=True) == ""


def test_ids_without_an_entry():
    assert OURS.decode([4096, 100_000]) == THEIRS.decode([4096, 100_000]) == ""
    for token_id in (-1, 2**32):
        with pytest.raises(TokenOutOfRangeError):
            OURS.decode([token_id])


def test_a_limit_saved_in_the_file_does_not_shorten_prompts(copy):
    path = copy / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(saved), encoding="utf-8")
    text = "one two three four five six seven"
    assert Tokenizer.load(copy).encode(text) == OURS.encode(text)


@pytest.mark.parametrize(
    ("generation", "config", "eos_ids"),
    [
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 1}, (5, 2)),
        ({"eos_token_id": 6}, {}, (6,)),
        ({}, {"eos_token_id": [3]}, (3,)),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": None}, ()),
    ],
)
def test_end_ids_come_from_the_generation_configuration_first(copy, generation, config, eos_ids):
    (copy / "generation_config.json").unlink()
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps(generation))
    (copy / "config.json").write_text(json.dumps(config))
    assert Tokenizer.load(copy).eos_ids == eos_ids


def test_templates_may_use_what_transformers_offers(copy):
    template = (
        "{%- for m in messages %}\n"
        "    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {% generation %}[{{ m | tojson(indent=1) }}]{% endgeneration %}\n"
        "{% endfor %}{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ pad_token }}"
    )
    ours, theirs = with_template(copy, template)
    for messages in CHATS:
        assert ours.render(messages) == theirs.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    assert "世界" in ours.render(CHATS[1])


def test_the_clock_can_be_given(copy):
    ours, theirs = with_template(copy, "{{ strftime_now('%d %b %Y') }}")
    assert ours.render([], now=datetime(2026, 11, 23)) == "23 Nov 2026"  # noqa: DTZ001
    assert ours.render([]) == theirs.apply_chat_template([CHATS[0]], tokenize=False)[0]


def test_named_tokens_may_be_objects_or_in_the_older_file(copy):
    (copy / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|bos|>"}}))
    (copy / "special_tokens_map.json").write_text(json.dumps({"bos_token": "old", "eos_token": "<|end|>"}))
    assert Tokenizer.load(copy).named_tokens == {"bos_token": "<|bos|>", "eos_token": "<|end|>"}


def test_the_template_called_default_counts(copy):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.load(copy).render([]) == "D"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(ModelCorruptError):
        Tokenizer.load(copy)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages[9].content.strip() }}",
        "{{ messages | sum }}",
        "{{ messages.append({}) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_templates_that_refuse_or_attack_end_in_an_error(copy, template):
    with pytest.raises(TraceFieldError):
        with_template(copy, template)[0].render(CHATS[0])


def test_a_template_cannot_change_the_messages(copy):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TraceFieldError):
        with_template(copy, "{% set _ = messages[0].update({'content': 'y'}) %}")[0].render(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_missing_and_broken_files(copy):
    with pytest.raises(ModelNotFoundError, match="no chat template"):
        Tokenizer.load(copy).render(CHATS[0])
    with pytest.raises(ModelCorruptError, match="chat template"):
        with_template(copy, "{% for %}")[0].render(CHATS[0])
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelCorruptError):
        Tokenizer.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError):
        Tokenizer.load(copy)


def test_a_tokenizer_that_brings_code_is_unsafe(copy):
    (copy / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    with pytest.raises(ModelUnsafeError):
        Tokenizer.load(copy)
