"""Measures an exported model: loss on held-out text, by kind, and greedy answers to questions.

example:
  python -m deploy.models.train.evaluate --work /tmp/demo --model deploy/models/demo
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from .chat import TURN_START
from .data import Stream, load_stream

QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is a weir?",
    "How does a river work?",
    "What is the KV cache?",
    "What does the router do?",
    "What's prefill, and why do we need it?",
    "What does the json module do?",
    "What does shutil.copytree do?",
    "Which module parses command-line arguments?",
    "Count from 1 to 10.",
    "What is 3 + 4?",
    "What is the capital of France?",
    "Name three birds as JSON.",
    "Write a short story about a fox and a mill.",
    "Write a haiku about rain.",
)
OPENINGS = ("Once upon a time", "The heron stood")


def documents(stream: Stream) -> Iterator[NDArray[np.int64]]:
    """Each document's token ids, [tokens]."""
    ends = [*stream.starts[1:], len(stream.ids)]
    for begin, end in zip(stream.starts, ends, strict=True):
        yield stream.ids[begin:end].astype(np.int64)


@torch.no_grad()
def losses_by_kind(model: Any, tokenizer: Any, stream: Stream, max_length: int) -> dict[str, dict[str, float]]:
    """For chats and for running text: documents, tokens predicted, nats per token and bits per byte.

    Every document is read alone, from its second token on, cut at `max_length` tokens.
    """
    sums = {"chat": np.zeros(4), "text": np.zeros(4)}
    chat_start = tokenizer.convert_tokens_to_ids(TURN_START)
    for ids in documents(stream):
        row = torch.from_numpy(ids[:max_length])[None]
        logits = model(row).logits[0, :-1].float()
        nats = float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
        byte_count = len(tokenizer.decode(row[0, 1:]).encode())
        sums["chat" if ids[0] == chat_start else "text"] += (1, row.shape[1] - 1, nats, byte_count)
    return {
        kind: {
            "documents": n,
            "tokens": tokens,
            "nats_per_token": nats / tokens,
            "bits_per_byte": nats / math.log(2) / size,
        }
        for kind, (n, tokens, nats, size) in sums.items()
    }


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 220) -> str:
    """The likeliest continuation of a prompt, without its end mark."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    answer: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return answer


def chat_prompt(tokenizer: Any, question: str) -> str:
    """One question as the model expects it, with the answer still to come."""
    messages = [{"role": "user", "content": question}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, help="directory with the encoded corpus; without it, only answers are printed"
    )
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    if arguments.work:
        stream = load_stream(arguments.work, "held_out")
        print(losses_by_kind(model, tokenizer, stream, model.config.max_position_embeddings))
    for question in QUESTIONS:
        print(f"> {question}\n{greedy(model, tokenizer, chat_prompt(tokenizer, question))}\n")
    for opening in OPENINGS:
        print(f"| {opening}{greedy(model, tokenizer, opening)}\n")


if __name__ == "__main__":
    main()
