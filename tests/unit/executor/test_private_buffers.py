"""Memory is used again when nothing refers to it any more, and not a moment before."""

from __future__ import annotations

from threading import Thread

from weir_executor.kv_transfer.private_buffers import PrivateBuffers

MIB = 1024 * 1024


def test_a_buffer_comes_back_with_its_last_cut() -> None:
    buffers = PrivateBuffers()
    buffer = buffers.take(3 * MIB)
    address = buffer.memory._address
    buffer.memory.copy_in(0, b"one two")
    cuts = [buffer.cut(0, 3), buffer.cut(4, 3)]
    del buffer
    other = buffers.take(3 * MIB)
    assert other.memory._address != address
    other.memory.copy_in(0, b"xxxxxxx")
    assert [bytes(cut) for cut in cuts] == [b"one", b"two"]
    part = cuts[1][1:]  # as an engine may keep it
    cuts.clear()
    assert buffers.idle_bytes == 0
    del part
    assert buffers.idle_bytes == 4 * MIB
    assert buffers.take(4 * MIB).memory._address == address


def test_cuts_cannot_be_written() -> None:
    assert PrivateBuffers().take(MIB).cut(0, 10).readonly


def test_what_is_idle_is_bounded_and_not_given_to_those_who_need_much_less() -> None:
    buffers = PrivateBuffers(idle_bytes=20 * MIB)
    kept = [buffers.take(12 * MIB) for _ in range(2)]
    kept.clear()
    assert buffers.idle_bytes == 12 * MIB
    small = buffers.take(MIB)
    assert (len(small.memory), buffers.idle_bytes) == (4 * MIB, 12 * MIB)
    assert len(buffers.take(6 * MIB).memory) == 12 * MIB


def test_many_threads() -> None:
    buffers = PrivateBuffers(idle_bytes=16 * MIB)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            buffer = buffers.take(MIB)
            buffer.memory.copy_in(0, bytes([number]) * 1000)
            cut = buffer.cut(0, 1000)
            del buffer
            if bytes(cut) != bytes([number]) * 1000:
                wrong.append(number)

    threads = [Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert buffers.idle_bytes <= 16 * MIB
