"""The models that this process serves, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from weir_chassis.errors import InvalidArgument, ModelNotFound
from weir_chassis.settings import SettingsError
from weir_tokenizer.encoding_cache import EncodingCache
from weir_tokenizer.model import TextModel, load_model
from weir_tokenizer.model_files import InvalidModelError
from weir_tokenizer.sandbox import TemplateEnvironment
from weir_tokenizer.settings import TokenizerSettings

# As `ModelVersion.model` says; a longer name cannot be one of ours, and would be repeated in the error's trailers.
_MAX_NAME_BYTES = 128


class Registry:
    def __init__(self, models: Mapping[str, TextModel]):
        assert models
        self._models = dict(models)

    @property
    def names(self) -> list[str]:
        return sorted(self._models)

    def find(self, name: str) -> TextModel:
        """The model of this name; the only one for an empty name. Raises ModelNotFound, or InvalidArgument."""
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise InvalidArgument("model", f"{len(name.encode())} bytes, the limit is {_MAX_NAME_BYTES}")
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        if not name:
            raise InvalidArgument("model", f"empty, which names the only model, but there are {len(self._models)}")
        if name not in self._models:
            raise ModelNotFound(name, self.names)
        return self._models[name]

    def select(self, name: str) -> list[TextModel]:
        """The model of this name in a list; all of them for an empty name. Raises as `find`."""
        return [self.find(name)] if name else [self._models[known] for known in self.names]


def load_registry(settings: TokenizerSettings, cache: EncodingCache, now: Callable[[], datetime]) -> Registry:
    """Reads every model directory. Raises SettingsError with one line for each that cannot be served."""
    environment = TemplateEnvironment(now)
    models: dict[str, TextModel] = {}
    problems: list[str] = []
    for name, source in settings.models.items():
        try:
            models[name] = load_model(
                name,
                source.path,
                revision=source.revision,
                max_prompt_tokens=settings.prompt_tokens_of(source),
                max_text_bytes=settings.max_text_bytes,
                environment=environment,
                cache=cache,
            )
        except InvalidModelError as error:
            problems.append(f"WEIR_TOKENIZER_MODELS: {name}: {error}")
    if problems:
        raise SettingsError("\n".join(problems))
    return Registry(models)
