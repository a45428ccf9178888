"""The messages of what goes by reference, checked and translated. The limits are the contract's."""

from __future__ import annotations

from collections.abc import Sequence

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_hash import join_hashes, split_hashes
from weir_chassis.errors import InvalidArgument
from weir_kvstore import mapping
from weir_kvstore.arena_put import Header, Reserved
from weir_kvstore.block import Block
from weir_kvstore.bounds import HASH_BYTES, MAX_PAYLOAD_BYTES, MAX_PUT_BLOCKS
from weir_kvstore.staging import NoPlace, PutResult
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.memory import SharedFile

_NO_PARENT = bytes(HASH_BYTES)


def attach_response(file: SharedFile) -> pb.AttachArenaResponse:
    return pb.AttachArenaResponse(arena_id=file.arena_id, path=str(file.path), size_bytes=file.size_bytes)


def headers(request: pb.ReserveBlocksRequest) -> list[Header]:
    """The blocks, their columns of one length and their sizes in bounds."""
    hashes = mapping.block_hashes(request.block_hashes)
    if len(hashes) > MAX_PUT_BLOCKS:
        raise InvalidArgument("block_hashes", f"{len(hashes)} blocks, a put has at most {MAX_PUT_BLOCKS}")
    if len(request.parent_block_hashes) != len(request.block_hashes):
        raise InvalidArgument(
            "parent_block_hashes", f"{len(request.parent_block_hashes)} bytes for {len(hashes)} blocks"
        )
    for name, column in (("payload_bytes", request.payload_bytes), ("checksums", request.checksums)):
        if len(column) != len(hashes):
            raise InvalidArgument(name, f"{len(column)} for {len(hashes)} blocks")
    for size in request.payload_bytes:
        if not 0 < size <= MAX_PAYLOAD_BYTES:
            raise InvalidArgument("payload_bytes", f"{size}, the limits are 1 and {MAX_PAYLOAD_BYTES}")
    parents = (b"" if parent == _NO_PARENT else parent for parent in split_hashes(request.parent_block_hashes))
    return [Header(*each) for each in zip(hashes, parents, request.payload_bytes, request.checksums, strict=True)]


def reserve_response(reserved: Reserved) -> pb.ReserveBlocksResponse:
    return pb.ReserveBlocksResponse(
        reservation_id=reserved.reservation_id, places=[_place(place) for place in reserved.places]
    )


def commit_response(result: PutResult) -> pb.CommitBlocksResponse:
    return pb.CommitBlocksResponse(
        stored_blocks=result.stored, present_blocks=result.present, corrupt_blocks=result.corrupt
    )


def placed_response(blocks: Sequence[Block], slots: ArenaSlots) -> pb.GetBlocksResponse:
    placed = pb.PlacedBlocks(
        block_hashes=join_hashes(block.record.address.block_hash for block in blocks),
        offsets=[slots.offset(block.block_id) for block in blocks],
        payload_bytes=[block.size_bytes for block in blocks],
        checksums=[block.record.checksum for block in blocks],
    )
    return pb.GetBlocksResponse(placed=placed)


def _place(place: int | NoPlace) -> pb.BlockPlace:
    match place:
        case NoPlace.PRESENT:
            return pb.BlockPlace(present=True)
        case NoPlace.REFUSED:
            return pb.BlockPlace(refused=True)
        case _:
            return pb.BlockPlace(offset=place)
