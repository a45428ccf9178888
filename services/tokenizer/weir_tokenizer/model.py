"""One served model's text side: its tokenizer, its templates, its limits. Pure CPU work; called from worker threads."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from weir.inference.v1.model_revision import model_revision, tokenizer_hash
from weir_chassis.errors import InvalidArgument, PromptTooLong, TemplateFailed
from weir_tokenizer.chat_template import Chat, ChatTemplate, ChatTemplates, InvalidTemplateError
from weir_tokenizer.encoding_cache import EncodingCache, cache_key
from weir_tokenizer.model_files import InvalidModelError, ModelFiles, load_tokenizer, read_model_files
from weir_tokenizer.sandbox import Budget, TemplateEnvironment


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """`ModelVersion` of the contract."""

    model: str
    revision: str
    tokenizer_hash: str


@dataclass(frozen=True, slots=True)
class ModelLimits:
    max_prompt_tokens: int
    max_text_bytes: int


class TextModel:
    """Texts and chats → token ids, and back. Immutable after it is loaded, but for the shared cache."""

    def __init__(
        self,
        identity: ModelIdentity,
        *,
        tokenizer: Tokenizer,
        templates: ChatTemplates | None,
        special_tokens: Mapping[str, str],
        limits: ModelLimits,
        cache: EncodingCache,
    ):
        self.identity, self.limits = identity, limits
        self.has_chat_template = templates is not None
        added = tokenizer.get_added_tokens_decoder()
        self.special_tokens = [token.content for _, token in sorted(added.items()) if token.special]
        # The ids of a vocabulary may have holes, so its size is one more than the largest id and not their number.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._tokenizer, self._templates = tokenizer, templates
        self._template_variables = dict(special_tokens)
        self._cache = cache

    def encode(self, texts: Sequence[str], fields: Sequence[str], *, add_special_tokens: bool) -> list[array[int]]:
        """The token ids of each text, as each would be encoded alone; `fields` names the texts in errors.

        Raises InvalidArgument for a text without tokens and PromptTooLong for one with too many.
        """
        name = self.identity.model
        keys = [cache_key(name, text, add_special_tokens=add_special_tokens) for text in texts]
        found = {key: self._cache.get(key) for key in dict.fromkeys(keys)}
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if found[key] is None}
        fresh = self._encode_cold(list(wanted.values()), add_special_tokens)
        for key, ids in zip(wanted, fresh, strict=True):
            self._cache.put(key, ids)
        known = {**found, **dict(zip(wanted, fresh, strict=True))}
        return [self._checked(known[key], field) for key, field in zip(keys, fields, strict=True)]

    def render(self, chat: Chat, budget: Budget) -> str:
        """The text that the model's template makes of the chat. Raises TemplateFailed."""
        return self.template_for(with_tools=chat.tools is not None).render(chat, self._template_variables, budget)

    def template_for(self, *, with_tools: bool) -> ChatTemplate:
        if self._templates is None:
            raise TemplateFailed("model", f"{self.identity.model!r} has no chat template; use Tokenize")
        return self._templates.choose(with_tools=with_tools)

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each list of ids, each below `vocab_size`. Bytes that are not whole UTF-8 become U+FFFD."""
        texts: list[str] = self._tokenizer.decode_batch(sequences, skip_special_tokens=skip_special_tokens)
        return texts

    def _encode_cold(self, texts: list[str], add_special_tokens: bool) -> list[array[int]]:
        # The batch call gives the interpreter lock away while it works, and works on all cores; "fast" leaves out the
        # offsets of characters, which nobody here reads.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens) if texts else []
        return [array("I", encoding.ids) for encoding in encodings]

    def _checked(self, token_ids: array[int] | None, field: str) -> array[int]:
        assert token_ids is not None
        if not token_ids:
            raise InvalidArgument(field, "encodes to no tokens; a prompt has at least one")
        if len(token_ids) > self.limits.max_prompt_tokens:
            raise PromptTooLong(field, len(token_ids), self.limits.max_prompt_tokens)
        return token_ids


def load_model(
    name: str,
    directory: Path,
    *,
    revision: str | None,
    max_prompt_tokens: int | None,
    max_text_bytes: int,
    environment: TemplateEnvironment,
    cache: EncodingCache,
) -> TextModel:
    """Reads the directory; `revision` and `max_prompt_tokens` go before what it says. Raises InvalidModelError."""
    files = read_model_files(directory)
    tokenizer = load_tokenizer(files)
    tokens = max_prompt_tokens or files.context_tokens()
    if tokens is None:
        raise InvalidModelError(
            f"{directory}: neither config.json (max_position_embeddings) nor tokenizer_config.json (model_max_length)"
            " states the length of the context; set WEIR_TOKENIZER_MAX_PROMPT_TOKENS"
        )
    return TextModel(
        identity=_identity(name, directory, revision),
        tokenizer=tokenizer,
        templates=_compile(files, environment),
        special_tokens=files.special_tokens(),
        limits=ModelLimits(tokens, max_text_bytes),
        cache=cache,
    )


def _identity(name: str, directory: Path, revision: str | None) -> ModelIdentity:
    try:
        return ModelIdentity(name, revision or model_revision(directory), tokenizer_hash(directory))
    except OSError as error:
        raise InvalidModelError(f"{directory}: {error}") from error


def _compile(files: ModelFiles, environment: TemplateEnvironment) -> ChatTemplates | None:
    try:
        templates = {
            name: ChatTemplate(environment, text, origin) for name, (text, origin) in files.templates().items()
        }
    except InvalidTemplateError as error:
        raise InvalidModelError(str(error)) from error
    return ChatTemplates(templates) if templates else None
