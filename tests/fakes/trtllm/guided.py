"""Guides as TensorRT-LLM's ranks follow them (`_torch/pyexecutor/grammar_matcher.py`), by the real xgrammar.

Its Python package is used here, and the compiled module alone in what is tested. What does not compile, and a token
that the guide does not take, raise in the rank's loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.trtllm.params import GuidedDecodingParams


class GuidedDecoder:
    def __init__(self, model: Path, vocab_size: int) -> None:
        import xgrammar  # takes two seconds

        self._xgrammar, self._vocab_size = xgrammar, vocab_size
        tokenizer = (model / "tokenizer.json").read_text(encoding="utf-8")
        metadata: Any = xgrammar.TokenizerInfo._detect_metadata_from_hf(tokenizer)
        told = json.loads(tokenizer)
        vocabulary = {**told["model"]["vocab"], **{each["content"]: each["id"] for each in told["added_tokens"]}}
        info = xgrammar.TokenizerInfo(
            sorted(vocabulary, key=vocabulary.__getitem__),
            vocab_type=metadata["vocab_type"],
            vocab_size=vocab_size,
            stop_token_ids=[json.loads((model / "config.json").read_text())["eos_token_id"]],
            add_prefix_space=metadata["add_prefix_space"],
        )
        self._compiler = xgrammar.GrammarCompiler(info)

    def create(self, asked: GuidedDecodingParams) -> Matcher:
        compiler = self._compiler
        if asked.json_object:
            compiled = compiler.compile_builtin_json_grammar()
        elif asked.json is not None:
            compiled = compiler.compile_json_schema(asked.json)
        elif asked.regex is not None:
            compiled = compiler.compile_regex(asked.regex)
        elif asked.grammar is not None:
            compiled = compiler.compile_grammar(asked.grammar)
        else:
            compiled = compiler.compile_structural_tag(asked.structural_tag or "")
        return Matcher(self._xgrammar, compiled, self._vocab_size)


class Matcher:
    """Of one request; once it has taken the end, it constrains nothing."""

    def __init__(self, xgrammar: Any, compiled: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = xgrammar.GrammarMatcher(compiled), vocab_size
        self._bitmask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def allowed(self) -> set[int] | None:
        if self._matcher.is_terminated():
            return None
        self._matcher.fill_next_token_bitmask(self._bitmask)
        words = self._bitmask[0].tolist()
        return {i for i in range(self._vocab_size) if words[i // 32] >> i % 32 & 1}

    def accept(self, token_id: int) -> None:
        if not self._matcher.is_terminated() and not self._matcher.accept_token(token_id):
            raise ValueError(f"failed to accept last new token: {token_id}")
