"""Text to token ids and back, and conversations to prompts, as transformers does it.

Invariants: `encode_chat(messages)` gives the ids of `AutoTokenizer.apply_chat_template` (transformers 5.19);
a template is rendered in jinja2's immutable sandbox, with no file, network or attribute of ours in reach.

Sources: `tokenization_utils_base.py` and `utils/chat_template_utils.py` of transformers 5.19.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import tokenizers
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from auditor.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    TokenOutOfRangeError,
    TraceFieldError,
)
from auditor.reference.config import read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.nodes import Node
    from jinja2.parser import Parser


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """One checkpoint's tokenizer and chat template; one object is equal only to itself.

    Attributes:
        directory: where it was read from.
        vocab_size: entries, added tokens included. The model's own vocabulary may be padded beyond it.
        eos_ids: ids that end an output: `generation_config.json`'s, else `config.json`'s; may be empty.
        special_ids: ids of the added tokens marked special; they match only themselves in text.
        template: the chat template's source, None for a base model.
        named_tokens: `bos_token` and the like, as the template sees them.

    """

    directory: Path
    vocab_size: int
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    template: str | None
    named_tokens: Mapping[str, str]
    _backend: tokenizers.Tokenizer

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and the configuration files beside it.

        Raises:
            ModelNotFoundError: no such directory, or no `tokenizer.json` or `config.json` in it.
            ModelUnsafeError: the tokenizer asks for code of its own.
            ModelCorruptError: an unreadable file.

        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFoundError("the model has no tokenizer.json", where=str(path), fix="copy it")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises the bare class
            raise ModelCorruptError(f"unreadable: {error}", where=str(path), fix="copy it again") from error
        backend.no_truncation()  # a limit saved in the file would silently shorten prompts
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        return cls(
            directory=directory,
            vocab_size=backend.get_vocab_size(with_added_tokens=True),
            eos_ids=_eos_ids(directory),
            special_ids=frozenset(token_id for token_id, token in added.items() if token.special),
            template=read_template(directory),
            named_tokens=_named_tokens(directory),
            _backend=backend,
        )

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; special tokens written out in it count as such.

        `add_special_tokens` also applies the tokenizer's own post-processor (often a leading BOS), which is
        what servers do with a plain-text prompt and never with a rendered conversation.
        """
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`; those without an entry (a padded vocabulary) give none.

        Raises:
            TokenOutOfRangeError: a negative id, or one beyond 32 bits.

        """
        for token_id in ids:
            if not 0 <= token_id < 2**32:
                raise TokenOutOfRangeError(f"token id {token_id} is not an id")
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    @property
    def end_id(self) -> int | None:
        """The id of `eos_token`; of the only end id when the checkpoint names no such token; else None."""
        token = self.named_tokens.get("eos_token")
        named = None if token is None else self._backend.token_to_id(token)
        if named is not None:
            return int(named)
        return self.eos_ids[0] if len(self.eos_ids) == 1 else None

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library object, for libraries that read vocabularies from it (grammars)."""
        return self._backend

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> str:
        """Return the prompt text of a conversation.

        `now` is the time that a template which prints the date sees; by default the present. A replay passes
        the time of the request.

        Raises:
            ModelNotFoundError: the model has no chat template.
            ModelCorruptError: the template is not valid jinja2.
            TraceFieldError: the template refuses these messages.

        """
        where = str(self.directory)
        if self.template is None:
            raise ModelNotFoundError(
                "no chat template", where=where, fix="log prompt_token_ids, not messages"
            )
        try:
            template = _compiled(self.template, now)
        except jinja2.TemplateError as error:
            raise ModelCorruptError(f"chat template: {error}", where=where) from error
        try:
            return template.render(
                **self.named_tokens,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TraceFieldError(
                f"the chat template refuses these messages: {error}", where=where
            ) from error

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> list[int]:
        """Return the prompt ids of a conversation; `now` as in `render`.

        Raises:
            ModelNotFoundError, ModelCorruptError, TraceFieldError: as `render`.

        """
        return self.encode(self.render(messages, add_generation_prompt=add_generation_prompt, now=now))


def read_template(directory: Path) -> str | None:
    """Read the chat template: `chat_template.jinja`, else `tokenizer_config.json`'s field, else None.

    Of several named templates the one called `default` counts. Line ends are read as newlines.

    Raises:
        ModelCorruptError: neither text nor a list of named texts.

    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelCorruptError(f"unreadable: {error}", where=str(path)) from error
    template = _optional_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelCorruptError("chat_template is not text", where=str(directory / "tokenizer_config.json"))
    return template


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(source: str, now: datetime | None) -> jinja2.Template:
    """The template ready to render: parsing one takes as long as replaying several tokens."""
    return _environment(now).from_string(source)


def _environment(now: datetime | None) -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes HTML, which would put &lt; into prompts.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(pattern: str) -> str:
        return (now or datetime.now()).strftime(pattern)  # noqa: DTZ005  local time, as the engines print it

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _named_tokens(directory: Path) -> dict[str, str]:
    path = directory / "tokenizer_config.json"
    config = _optional_json(path)
    if config.get("auto_map"):
        raise ModelUnsafeError(
            "auto_map asks to run code that comes with the checkpoint",
            where=str(path),
            fix="use tokenizer.json",
        )
    named: dict[str, str] = {}
    for field, value in (_optional_json(directory / "special_tokens_map.json") | config).items():
        content = value.get("content") if isinstance(value, dict) else value
        if field.endswith("_token") and isinstance(content, str):
            named[field] = content
    return named


def _eos_ids(directory: Path) -> tuple[int, ...]:
    for path in (directory / "generation_config.json", directory / "config.json"):
        value = _optional_json(path).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
            raise ModelCorruptError(f"eos_token_id {value!r} is not an id or a list of ids", where=str(path))
        return tuple(ids)
    return ()


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
