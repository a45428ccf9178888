"""Guides compiled in processes of their own: once each, within limits, and never at the cost of the next one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from models_fixture import VOCAB_SIZE
from unit.executor.guide_tokens import ids_of, save_tokenizer
from weir_chassis.errors import Internal, InvalidArgument, Overloaded
from weir_executor.guided import compiler as compiler_module
from weir_executor.guided.compile_pool import CompileProcess
from weir_executor.guided.compile_process import CompileLimits
from weir_executor.guided.compiler import GuideCompiler, GuideLimits, load_compiler
from weir_executor.guided.guide import Guide, GuideKind, choice_guide

_ENDLESS = Guide(GuideKind.REGEX, "((a{1,1000}){1,1000}){1,1000}")
_LIMITS = CompileLimits(max_seconds=20.0, max_bytes=1 << 30, max_compiled_bytes=1 << 20)


@asynccontextmanager
async def compiling(
    directory: Path, limits: CompileLimits = _LIMITS, cache_bytes: int = 1 << 20
) -> AsyncIterator[GuideCompiler]:
    compiler = load_compiler(save_tokenizer(directory), VOCAB_SIZE, GuideLimits(limits, cache_bytes))
    try:
        yield compiler
    finally:
        await compiler.close()


async def test_a_guide_is_compiled_and_then_known(tmp_path: Path) -> None:
    guide = Guide(GuideKind.JSON_OBJECT)
    async with compiling(tmp_path) as compiler:
        assert compiler.known(guide) is None
        compiled = await compiler.compile(guide)
        assert compiled.guide == guide
        assert compiler.known(guide) is compiled is await compiler.compile(guide)
        state = compiled.start()
        assert state.advance(ids_of("{")[0])
        assert not state.allows_end


async def test_many_who_want_one_guide_compile_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Guide] = []
    inner = CompileProcess.compile

    async def counted(process: CompileProcess, guide: Guide) -> bytes:
        asked.append(guide)
        return await inner(process, guide)

    monkeypatch.setattr(CompileProcess, "compile", counted)
    guide = choice_guide(["yes", "no"])
    async with compiling(tmp_path) as compiler:
        first = asyncio.create_task(compiler.compile(guide))
        await asyncio.sleep(0)
        first.cancel()  # who asked first leaves; the others get what it asked for
        found = await asyncio.gather(*(compiler.compile(guide) for _ in range(5)))
        assert len(asked) == 1
        assert len({id(one) for one in found}) == 1
        with pytest.raises(asyncio.CancelledError):
            await first


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (Guide(GuideKind.REGEX, "[a-z"), "Unclosed"),
        (Guide(GuideKind.REGEX, r"(a)\1"), "Backreference is not supported"),
        (Guide(GuideKind.EBNF, "root ::= nothing"), 'Rule "nothing" is not defined'),
        (Guide(GuideKind.EBNF, 'a ::= "x"'), 'root rule with name "root" is not found'),
        (Guide(GuideKind.EBNF, 'root ::= "x" root'), "nothing that it allows ever ends: rule 'root'"),
        (Guide(GuideKind.EBNF, f"root ::= {'(' * 30000}{')' * 30000}"), "maximum limit"),
        (Guide(GuideKind.EBNF, 'root ::= "\\x00"'), "allows nothing that this model's tokens can spell"),
        (Guide(GuideKind.JSON_SCHEMA, "{"), "Failed to parse JSON"),
        (Guide(GuideKind.JSON_SCHEMA, '{"type": 5}'), "Type should be a string"),
        (Guide(GuideKind.JSON_SCHEMA, "false"), "cannot accept any value"),
        (Guide(GuideKind.JSON_SCHEMA, '{"$ref": "#/nowhere"}'), "nowhere"),
        (Guide(GuideKind.JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum greater"),
        (Guide(GuideKind.STRUCTURAL_TAG, "{"), "not JSON"),
        (Guide(GuideKind.STRUCTURAL_TAG, "{}"), "format field"),
    ],
)
async def test_what_is_wrong_is_said(guide: Guide, words: str, tmp_path: Path) -> None:
    async with compiling(tmp_path) as compiler:
        with pytest.raises(InvalidArgument, match=words) as caught:
            await compiler.compile(guide)
        assert caught.value.field == f"sampling.guide.{guide.kind.value}"
        assert "/project/" not in str(caught.value)
        assert len(caught.value.description) < 400
        assert compiler.known(guide) is None
        assert await compiler.compile(choice_guide(["yes"]))


async def test_a_schema_that_only_ends_in_itself_is_refused(tmp_path: Path) -> None:
    endless = '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'
    async with compiling(tmp_path) as compiler:
        with pytest.raises(InvalidArgument, match="ever ends"):
            await compiler.compile(Guide(GuideKind.JSON_SCHEMA, endless))
        optional = endless.replace(', "required": ["a"]', "")
        assert await compiler.compile(Guide(GuideKind.JSON_SCHEMA, optional))


async def test_a_compile_that_does_not_end_is_ended_and_holds_nobody_up(tmp_path: Path) -> None:
    async with compiling(tmp_path, CompileLimits(0.7, 1 << 30, 1 << 20)) as compiler:
        slow = asyncio.create_task(compiler.compile(_ENDLESS))
        assert await compiler.compile(choice_guide(["yes"]))  # by the other process, meanwhile
        assert not slow.done()
        with pytest.raises(InvalidArgument, match=r"sampling\.guide\.regex: takes more than 0\.7 s to compile"):
            await slow
        found = await asyncio.gather(*(compiler.compile(choice_guide([str(i)])) for i in range(4)))
        assert len(found) == 4


async def test_a_compile_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    async with compiling(tmp_path, CompileLimits(30.0, 200 << 20, 1 << 20)) as compiler:
        with pytest.raises(InvalidArgument, match="takes more than 209715200 bytes to compile"):
            await compiler.compile(_ENDLESS)
        assert await compiler.compile(choice_guide(["yes"]))


async def test_a_compiled_guide_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with compiling(tmp_path, CompileLimits(20.0, 1 << 30, 20_000)) as compiler:
        with pytest.raises(InvalidArgument, match="bytes when compiled; at most 20000"):
            await compiler.compile(Guide(GuideKind.REGEX, "(a|b|c){0,500}x"))


async def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    process = CompileProcess(save_tokenizer(tmp_path), VOCAB_SIZE, _LIMITS)
    try:
        assert await process.compile(choice_guide(["yes"]))
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGKILL)
        await process._process.wait()
        with pytest.raises(ValueError, match="broke down over it"):
            await process.compile(choice_guide(["yes"]))
        assert await process.compile(choice_guide(["yes"]))
    finally:
        await process.end()


async def test_a_process_that_does_not_start_is_a_fault_of_ours(tmp_path: Path) -> None:
    process = CompileProcess(tmp_path / "nothing.json", VOCAB_SIZE, _LIMITS)
    with pytest.raises(Internal, match=r"did not start \(exit code 1\)"):
        await process.compile(choice_guide(["yes"]))


async def test_the_process_ends_itself_when_its_parent_is_gone(tmp_path: Path) -> None:
    """Nobody is left to end it: its own alarm does."""
    process = CompileProcess(save_tokenizer(tmp_path), VOCAB_SIZE, CompileLimits(0.2, 1 << 30, 1 << 20))
    process._max_seconds = 30.0
    with pytest.raises(ValueError, match=r"broke down over it \(SIGALRM\)"):
        await process.compile(_ENDLESS)


async def test_the_guides_used_last_are_kept(tmp_path: Path) -> None:
    guides = [choice_guide([f"option {i}"]) for i in range(4)]
    async with compiling(tmp_path) as compiler:
        size = (await compiler.compile(guides[0])).num_bytes
    async with compiling(tmp_path, cache_bytes=3 * size) as compiler:
        for guide in guides[:3]:
            await compiler.compile(guide)
        assert compiler.known(guides[0])
        await compiler.compile(guides[3])
        assert [compiler.known(guide) is not None for guide in guides] == [True, False, True, True]
    async with compiling(tmp_path, cache_bytes=0) as compiler:
        assert await compiler.compile(guides[0])
        assert compiler.known(guides[0]) is None


async def test_too_many_under_way_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module, "_MAX_UNDER_WAY", 2)
    async with compiling(tmp_path) as compiler:
        tasks = [asyncio.create_task(compiler.compile(choice_guide([str(i)]))) for i in range(3)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [False, False, True]
        assert await compiler.compile(choice_guide(["2"]))
