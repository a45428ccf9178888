"""What every tokenizer service keeps. Each check takes a stub to one that serves two models, described by `Served`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2

from weir.inference.v1 import chat_pb2
from weir.kvstore.v1 import block_hash
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.status import RemoteError, from_rpc_error, to_status

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub as Stub

TEXTS: Final = ["The weir", " measures", "東京 🙂", "a\n\nb", "x" * 50]


@dataclass(frozen=True)
class Served:
    """`chat` has a template that raises for the role `refused`; `plain` has none. Both take 8 to 4096 tokens and at
    most 1 MiB, encode any text without loss, and decode an id at a time."""

    chat: str = "chat"
    plain: str = "plain"


SERVED: Final = Served()
Check = Callable[["Stub"], Awaitable[None]]


def said(text: str, role: str = "user") -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, content=[chat_pb2.ContentPart(text=text)])


async def tokenize(stub: Stub, *texts: str, model: str = SERVED.chat, **fields: Any) -> list[list[int]]:
    response = await stub.Tokenize(pb.TokenizeRequest(model=model, texts=texts, **fields))
    return [list(prompt.token_ids) for prompt in response.prompts]


async def detokenize(stub: Stub, *lists: Sequence[int], **fields: Any) -> list[str]:
    sequences = [pb.TokenIds(token_ids=ids) for ids in lists]
    return list((await stub.Detokenize(pb.DetokenizeRequest(model=SERVED.chat, sequences=sequences, **fields))).texts)


async def render(stub: Stub, *messages: chat_pb2.ChatMessage, **fields: Any) -> str:
    prompt = chat_pb2.ChatPrompt(messages=messages, **fields)
    request = pb.ApplyChatTemplateRequest(model=SERVED.chat, prompt=prompt, render_only=True)
    response = await stub.ApplyChatTemplate(request)
    assert response.HasField("text")
    assert not response.HasField("prompt")
    return response.text


async def info(stub: Stub, model: str = SERVED.chat) -> pb.TokenizerInfo:
    [found] = (await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest(model=model))).tokenizers
    return found


async def refused(call: Awaitable[object], reason: str, field: str = "") -> RemoteError:
    """The call fails with this reason and, where a field is given, names it in the details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert isinstance(error, RemoteError)
    assert reason_name(error.reason) == reason, error.message
    if field:
        violations = error_details_pb2.BadRequest()
        assert any(detail.Unpack(violations) for detail in to_status(error).details)
        assert [violation.field for violation in violations.field_violations] == [field]
    return error


# --- texts and ids -------------------------------------------------------------------------------------------------


async def check_texts_survive_the_round_trip(stub: Stub) -> None:
    encoded = await tokenize(stub, *TEXTS, add_special_tokens=False)
    assert all(encoded)
    assert await detokenize(stub, *encoded) == TEXTS


async def check_a_batch_is_its_texts_alone_in_order(stub: Stub) -> None:
    alone = [(await tokenize(stub, text))[0] for text in TEXTS]
    assert await tokenize(stub, *TEXTS) == alone
    assert await tokenize(stub, *reversed(TEXTS), *TEXTS) == alone[::-1] + alone


async def check_special_tokens_are_added_unless_told_not_to(stub: Stub) -> None:
    unset, yes = await tokenize(stub, "weir"), await tokenize(stub, "weir", add_special_tokens=True)
    no = await tokenize(stub, "weir", add_special_tokens=False)
    assert unset == yes
    assert unset[0][-len(no[0]) :] == no[0]


async def check_special_tokens_are_left_out_unless_told_not_to(stub: Stub) -> None:
    special = (await info(stub)).special_tokens[0]
    encoded = await tokenize(stub, special + "weir", add_special_tokens=False)
    assert await detokenize(stub, *encoded) == ["weir"]
    assert await detokenize(stub, *encoded, skip_special_tokens=False) == [special + "weir"]


async def check_half_a_character_is_replaced(stub: Stub) -> None:
    [ids] = await tokenize(stub, "🙃", add_special_tokens=False)
    assert await detokenize(stub, ids[:-1], ids, []) == ["\ufffd", "🙃", ""]


# --- chats ---------------------------------------------------------------------------------------------------------


async def check_a_chat_is_its_rendered_text_encoded(stub: Stub) -> None:
    prompt = chat_pb2.ChatPrompt(messages=[said("Be brief.", "system"), said("What is a weir?")])
    response = await stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(model=SERVED.chat, prompt=prompt))
    assert not response.HasField("text")
    text = await render(stub, *prompt.messages)
    assert "What is a weir?" in text
    assert [list(response.prompt.token_ids)] == await tokenize(stub, text, add_special_tokens=False)


async def check_the_end_of_a_chat(stub: Stub) -> None:
    turn = said("What is a weir?")
    opened, closed = await render(stub, turn), await render(stub, turn, add_generation_prompt=False)
    assert opened == await render(stub, turn, add_generation_prompt=True)
    assert opened.startswith(closed)
    assert len(opened) > len(closed)
    assert (await render(stub, turn, said("A low", "assistant"), continue_final_message=True)).endswith("A low")


async def check_what_a_chat_refuses(stub: Stub) -> None:
    image = chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(image=chat_pb2.ImagePart(url="u"))])
    await refused(render(stub, said("x"), image), "UNSUPPORTED")
    await refused(render(stub, said("x", "refused")), "TEMPLATE_FAILED", "prompt")
    await refused(render(stub), "INVALID_ARGUMENT", "prompt.messages")
    await refused(render(stub, *[said("x")] * 4097), "INVALID_ARGUMENT", "prompt.messages")
    await refused(render(stub, said("x", "r" * 65)), "INVALID_ARGUMENT", "prompt.messages[0].role")
    tool = chat_pb2.Tool(name="f", parameters_json="{")
    await refused(render(stub, said("x"), tools=[tool]), "INVALID_ARGUMENT", "prompt.tools[0].parameters_json")
    variables = "prompt.template_variables_json"
    await refused(render(stub, said("x"), template_variables_json="[]"), "INVALID_ARGUMENT", variables)
    both = {"add_generation_prompt": True, "continue_final_message": True}
    await refused(render(stub, said("x"), **both), "INVALID_ARGUMENT", "prompt.add_generation_prompt")


async def check_a_model_without_a_template_renders_nothing(stub: Stub) -> None:
    assert not (await info(stub, SERVED.plain)).has_chat_template
    prompt = chat_pb2.ChatPrompt(messages=[said("x")])
    request = pb.ApplyChatTemplateRequest(model=SERVED.plain, prompt=prompt)
    await refused(stub.ApplyChatTemplate(request), "TEMPLATE_FAILED")


# --- block hashes --------------------------------------------------------------------------------------------------


async def check_block_hashes_are_the_executable_contracts(stub: Stub) -> None:
    scope = pb.HashScope(adapter="lora", tenant_salt="tenant", block_size=4)
    response = await stub.Tokenize(pb.TokenizeRequest(model=SERVED.chat, texts=TEXTS, hash_scope=scope))
    version = response.model_version
    root = block_hash.scope_root(
        block_hash.HashScope(version.model, version.revision, version.tokenizer_hash, "lora", "tenant")
    )
    for prompt in response.prompts:
        hashes = block_hash.split_hashes(prompt.block_hashes)
        assert len(hashes) == len(prompt.token_ids) // 4
        assert hashes == block_hash.block_hashes(root, prompt.token_ids, 4)


async def check_a_chat_has_the_hashes_of_its_tokens(stub: Stub) -> None:
    scope = pb.HashScope(block_size=2)
    prompt = chat_pb2.ChatPrompt(messages=[said("What is a weir?")])
    chat = await stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(model=SERVED.chat, prompt=prompt, hash_scope=scope))
    text = await render(stub, *prompt.messages)
    request = pb.TokenizeRequest(model=SERVED.chat, texts=[text], add_special_tokens=False, hash_scope=scope)
    assert [chat.prompt] == list((await stub.Tokenize(request)).prompts)
    assert chat.prompt.block_hashes


async def check_a_scope_separates_and_only_full_blocks_count(stub: Stub) -> None:
    async def hashes(**scope: Any) -> bytes:
        request = pb.TokenizeRequest(model=SERVED.chat, texts=["x" * 50], hash_scope=pb.HashScope(**scope))
        return (await stub.Tokenize(request)).prompts[0].block_hashes

    found = [
        await hashes(block_size=2),
        await hashes(block_size=3),
        await hashes(block_size=2, tenant_salt="t"),
        await hashes(block_size=2, adapter="t"),
    ]
    assert len(set(found)) == len(found)
    assert await hashes(block_size=2) == found[0]
    assert await hashes() == await hashes(block_size=1024) == b""


# --- models --------------------------------------------------------------------------------------------------------


async def check_what_is_loaded_is_told(stub: Stub) -> None:
    all_of_them = (await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())).tokenizers
    assert [one.model_version.model for one in all_of_them] == sorted([SERVED.chat, SERVED.plain])
    for one in all_of_them:
        assert one == await info(stub, one.model_version.model)
        assert len(one.model_version.tokenizer_hash) == 32
        assert one.model_version.revision
        assert one.vocab_size > 256
    response = await stub.Tokenize(pb.TokenizeRequest(model=SERVED.plain, texts=["x"]))
    assert response.model_version == (await info(stub, SERVED.plain)).model_version


async def check_an_unknown_model_is_not_found(stub: Stub) -> None:
    prompt = chat_pb2.ChatPrompt(messages=[said("x")])
    calls: list[Awaitable[object]] = [
        tokenize(stub, "x", model="nobody"),
        stub.Detokenize(pb.DetokenizeRequest(model="nobody", sequences=[pb.TokenIds(token_ids=[1])])),
        stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(model="nobody", prompt=prompt)),
        info(stub, "nobody"),
    ]
    for call in calls:
        error = await refused(call, "MODEL_NOT_FOUND")
        assert SERVED.chat in error.message


async def check_no_model_among_several_is_refused(stub: Stub) -> None:
    await refused(tokenize(stub, "x", model=""), "INVALID_ARGUMENT", "model")


# --- limits --------------------------------------------------------------------------------------------------------


async def check_texts_out_of_their_limits(stub: Stub) -> None:
    most = (await info(stub)).max_text_bytes
    await refused(tokenize(stub), "INVALID_ARGUMENT", "texts")
    await refused(tokenize(stub, *["x"] * 257), "INVALID_ARGUMENT", "texts")
    await refused(tokenize(stub, "x", ""), "INVALID_ARGUMENT", "texts[1]")
    await refused(tokenize(stub, "x" * (most + 1)), "INVALID_ARGUMENT", "texts")
    await refused(tokenize(stub, "x" * (10 << 20)), "INVALID_ARGUMENT", "texts")
    await refused(render(stub, said("x" * (most + 1))), "INVALID_ARGUMENT", "prompt")


async def check_ids_out_of_their_limits(stub: Stub) -> None:
    size = (await info(stub)).vocab_size
    await refused(detokenize(stub), "INVALID_ARGUMENT", "sequences")
    await refused(detokenize(stub, [0], [1, size]), "INVALID_ARGUMENT", "sequences[1].token_ids[1]")
    await refused(detokenize(stub, [2**32 - 1]), "INVALID_ARGUMENT", "sequences[0].token_ids[0]")
    await detokenize(stub, [size - 1])


async def check_scopes_out_of_their_limits(stub: Stub) -> None:
    salt, size = pb.HashScope(tenant_salt="x" * 129), pb.HashScope(block_size=1025)
    await refused(tokenize(stub, "x", hash_scope=salt), "INVALID_ARGUMENT", "hash_scope.tenant_salt")
    await refused(tokenize(stub, "x", hash_scope=size), "INVALID_ARGUMENT", "hash_scope.block_size")


async def check_a_prompt_longer_than_the_context(stub: Stub) -> None:
    limit = (await info(stub)).max_prompt_tokens
    # One more special token than the context holds, whatever the vocabulary makes of words.
    special = (await info(stub)).special_tokens[0]
    assert [len(ids) for ids in await tokenize(stub, special * limit, add_special_tokens=False)] == [limit]
    error = await refused(
        tokenize(stub, "x", special * (limit + 1), add_special_tokens=False), "PROMPT_TOO_LONG", "texts[1]"
    )
    assert error.metadata["limit"] == str(limit)
    chat = pb.ApplyChatTemplateRequest(
        model=SERVED.chat, prompt=chat_pb2.ChatPrompt(messages=[said(special * (limit + 1))])
    )
    await refused(stub.ApplyChatTemplate(chat), "PROMPT_TOO_LONG", "prompt")


async def check_a_deadline_that_has_passed(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(pb.TokenizeRequest(model=SERVED.chat, texts=["x"]), timeout=-1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def check_many_at_once(stub: Stub) -> None:
    """Forty callers, of whom some leave midway; whoever stays is answered rightly."""
    expected = {text: (await tokenize(stub, text))[0] for text in TEXTS}

    async def come_and_go(random: Random) -> None:
        text = random.choice(TEXTS)
        call = asyncio.ensure_future(tokenize(stub, text))
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.005)
            call.cancel()
        await asyncio.wait([call])
        assert call.cancelled() or call.result() == [expected[text]]

    await asyncio.gather(*(come_and_go(Random(seed)) for seed in range(40)))


CHECKS: Final[Sequence[Check]] = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
