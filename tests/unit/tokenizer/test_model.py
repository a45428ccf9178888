from __future__ import annotations

import time
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unit.tokenizer.conftest import LoadModel
from unit.tokenizer.model_directories import TURNS, added_token, byte_level_json, metaspace_json, write_model
from weir.inference.v1.model_revision import model_revision, tokenizer_hash
from weir_chassis.errors import InvalidArgument, PromptTooLong, TemplateFailed
from weir_tokenizer.chat_template import Chat
from weir_tokenizer.encoding_cache import CacheEvent, EncodingCache
from weir_tokenizer.model import TextModel, load_model
from weir_tokenizer.model_files import InvalidModelError
from weir_tokenizer.sandbox import Budget, TemplateEnvironment

USER = {"role": "user", "content": "hi"}
texts = st.text(min_size=1, max_size=40)


def encode(model: TextModel, *texts: str, special: bool = True) -> list[list[int]]:
    return [ids.tolist() for ids in model.encode(texts, texts, add_special_tokens=special)]


@pytest.fixture(scope="module", params=[byte_level_json, metaspace_json])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tokenizer_json=request.param())


@pytest.fixture(scope="module")
def models(directory: Path) -> tuple[TextModel, TextModel, TextModel]:
    """The same model with a cache, with one that holds a few entries only, and with none."""

    def open_with(cache_bytes: int) -> TextModel:
        return load_model(
            "m",
            directory,
            revision="r",
            max_prompt_tokens=None,
            max_text_bytes=1 << 20,
            environment=TemplateEnvironment(lambda: pytest.fail("no template here")),
            cache=EncodingCache(cache_bytes),
        )

    return open_with(1 << 20), open_with(900), open_with(0)


many = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@many
@given(batch=st.lists(texts, min_size=1, max_size=6), special=st.booleans())
def test_a_batch_equals_its_texts_alone_whatever_is_cached(
    models: tuple[TextModel, TextModel, TextModel], batch: list[str], special: bool
) -> None:
    *_, cold = models
    alone = [encode(cold, text, special=special)[0] for text in batch]
    for model in models:
        assert encode(model, *batch, special=special) == alone
        assert encode(model, *reversed(batch), special=special) == alone[::-1]


def test_the_flag_is_part_of_what_is_cached(models: tuple[TextModel, TextModel, TextModel], directory: Path) -> None:
    cached, _, cold = models
    for _ in range(2):
        for special in (True, False):
            assert encode(cached, "weir", special=special) == encode(cold, "weir", special=special)


@many
@given(text=st.text(max_size=60))
def test_byte_level_text_survives_the_round_trip(byte_level: TextModel, text: str) -> None:
    plain = text or "x"
    assert byte_level.decode(encode(byte_level, plain, special=False), skip_special_tokens=False) == [plain]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    directory = write_model(tmp_path_factory.mktemp("byte-level"))
    return load_model(
        "m",
        directory,
        revision=None,
        max_prompt_tokens=None,
        max_text_bytes=1 << 20,
        environment=TemplateEnvironment(lambda: pytest.fail("no template here")),
        cache=EncodingCache(1 << 16),
    )


def test_equal_texts_of_a_batch_are_encoded_once(load: LoadModel) -> None:
    events: list[CacheEvent] = []
    model = load(cache=EncodingCache(1 << 16, events.append))
    assert encode(model, "a b", "c", "a b")[0] == encode(model, "a b")[0]
    assert events == [CacheEvent.MISS, CacheEvent.MISS, CacheEvent.HIT]


def test_special_tokens_are_added_only_where_asked(load: LoadModel) -> None:
    model = load(tokenizer_json=metaspace_json())
    [[bos, *rest]] = encode(model, "weir")
    assert model.decode([[bos]], skip_special_tokens=False) == ["<s>"]
    assert encode(model, "weir", special=False) == [rest]


def test_a_special_token_in_the_text_is_one_token(load: LoadModel) -> None:
    model = load()
    [[token]] = encode(model, "<|im_end|>", special=False)
    assert model.decode([[token]], skip_special_tokens=True) == [""]
    assert model.decode([[token]], skip_special_tokens=False) == ["<|im_end|>"]


def test_bytes_that_are_no_whole_character_are_replaced(load: LoadModel) -> None:
    model = load()
    [ids] = encode(model, "🙃", special=False)
    assert model.decode([ids[:1]], skip_special_tokens=True) == ["\ufffd"]
    assert model.decode([ids, []], skip_special_tokens=True) == ["🙃", ""]


def test_too_many_tokens_are_refused_and_exactly_enough_are_not(load: LoadModel) -> None:
    model = load(context=3)
    assert len(encode(model, "xyz", special=False)[0]) == 3
    with pytest.raises(PromptTooLong) as caught:
        model.encode(["x", "xyzw"], ["texts[0]", "texts[1]"], add_special_tokens=False)
    assert caught.value.field == "texts[1]"
    assert caught.value.metadata == {"tokens": "4", "limit": "3"}


def test_a_text_without_tokens_is_refused(load: LoadModel, environment: TemplateEnvironment) -> None:
    model = load(template="{# nothing #}", added_tokens_decoder={"900": added_token("<|gone|>", normalized=True)})
    text = model.render(Chat([USER]), Budget.start(100, 1.0, time.monotonic))
    with pytest.raises(InvalidArgument, match="encodes to no tokens"):
        model.encode([text], ["prompt"], add_special_tokens=False)


def test_what_a_model_tells_of_itself(load: LoadModel, tmp_path: Path) -> None:
    model = load(template="x", added_tokens_decoder={"900": added_token("<|new|>")})
    assert model.has_chat_template
    assert model.limits.max_prompt_tokens == 4096
    assert set(TURNS) | {"<s>", "<|new|>"} <= set(model.special_tokens)
    assert model.identity.revision == "r"
    assert model.identity.tokenizer_hash == tokenizer_hash(tmp_path / "model")


def test_the_revision_is_the_files_unless_the_operator_says(byte_level: TextModel, tmp_path: Path) -> None:
    assert byte_level.identity.revision == model_revision(write_model(tmp_path))


def test_a_model_without_a_template_renders_nothing(load: LoadModel) -> None:
    model = load()
    assert not model.has_chat_template
    with pytest.raises(TemplateFailed, match="has no chat template"):
        model.render(Chat([USER]), Budget.start(100, 1.0, time.monotonic))


def test_a_vocabulary_with_holes_ends_at_its_largest_id(load: LoadModel) -> None:
    model = load()
    [[largest]] = [[max(encode(model, text, special=False)[0]) for text in ["weather"]]]
    assert largest < model.vocab_size
    assert model.decode([array("I", [model.vocab_size - 1])], skip_special_tokens=False) != [""]


def test_a_directory_that_does_not_say_its_context_needs_to_be_told(load: LoadModel) -> None:
    with pytest.raises(InvalidModelError, match="WEIR_TOKENIZER_MAX_PROMPT_TOKENS"):
        load(context=None)
    assert load(context=None, model_max_length=77).limits.max_prompt_tokens == 77
