"""The two shipped models: they load, they fit, they share a tokenizer, and the demo answers sensibly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy.models.train.chat import as_messages, render
from deploy.models.train.evaluate import chat_prompt, greedy
from deploy.models.train.shape import SHAPES
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

MODELS = Path(__file__).parents[3] / "deploy" / "models"
DEMO, DRAFT = MODELS / "demo", MODELS / "demo-draft"
MIB = 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def demo() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)


@pytest.mark.parametrize(("directory", "limit"), [(DEMO, 16 * MIB), (DRAFT, 4 * MIB)], ids=["demo", "draft"])
def test_size_stays_under_the_limit(directory: Path, limit: int) -> None:
    assert sum(path.stat().st_size for path in directory.rglob("*")) <= limit


@pytest.mark.parametrize(("directory", "shape"), [(DEMO, "demo"), (DRAFT, "draft")], ids=["demo", "draft"])
def test_directory_loads_as_the_shape_that_was_trained(directory: Path, shape: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert model.config.hidden_size == SHAPES[shape].hidden_size
    assert model.config.num_hidden_layers == SHAPES[shape].layer_count
    assert model.generation_config.eos_token_id == [2, 0]


def test_draft_has_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (DEMO / name).read_bytes() == (DRAFT / name).read_bytes()


@pytest.mark.parametrize("text", ["A weir, 1234.", "naïve café 🦊", "  def f():\n\treturn 'x'\n", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_served_template_is_the_one_that_was_trained(tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
    messages = as_messages([("Hi <&> é", "Hello.")], system="Be brief.")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render(messages)
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == render(messages, tools)
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    text = render(messages, tools)
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == text
    assert json.loads(text.split("<tool_call>")[-1].split("</tool_call>")[0]) == call["function"]


def test_demo_knows_what_a_weir_is(demo: Any, tokenizer: Any) -> None:
    answer = greedy(demo, tokenizer, chat_prompt(tokenizer, "What is a weir?"), max_new_tokens=60).lower()
    assert any(word in answer for word in ("dam", "river", "water", "wall"))


def test_demo_continues_a_story(demo: Any, tokenizer: Any) -> None:
    assert len(greedy(demo, tokenizer, "Once upon a time", max_new_tokens=30).split()) > 8
