"""The encoded corpus on disk, and batches cut from it.

stream   doc0 doc0 doc0 | doc1 doc1 | doc2 doc2 doc2 doc2 | ...
row 0    doc0 doc0 doc0   doc1 doc1   doc2                        length+1 ids; the cut rest of doc2 is skipped
row 1    doc3 ...                                                 every row begins with a document
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import library_texts, make_corpus
from .shape import VOCAB_SIZE
from .tokenizer import encode_documents, train_tokenizer

TOKENIZER_SAMPLE = 30_000
"""Documents that the tokenizer is trained on: enough for 4096 entries, and quick."""


@dataclass(frozen=True)
class Stream:
    """Documents' ids end to end, [tokens], and each document's first index, [documents]."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]


def prepare(directory: Path, seed: int, conversation_count: int) -> None:
    """Makes the corpus, trains the tokenizer unless there is one, and writes both streams under `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    corpus = make_corpus(seed, conversation_count, library_texts())
    tokenizer_path = directory / "tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer(corpus.train[:TOKENIZER_SAMPLE], VOCAB_SIZE).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    for name, texts in (("train", corpus.train), ("held_out", corpus.held_out)):
        ids, starts = encode_documents(tokenizer, texts)
        np.save(directory / f"{name}_ids.npy", ids)
        np.save(directory / f"{name}_starts.npy", starts)
        print(
            f"{name}: {len(texts)} documents, {len(ids)} tokens, {sum(len(t.encode()) for t in texts)} bytes",
            flush=True,
        )


def load_stream(directory: Path, name: str) -> Stream:
    """The stream that `prepare` wrote under this name."""
    return Stream(np.load(directory / f"{name}_ids.npy"), np.load(directory / f"{name}_starts.npy"))


class Rows:
    """Deals rows of a stream, round and round. `cursor` is the next document: all that a resumed run needs."""

    def __init__(self, stream: Stream, cursor: int = 0) -> None:
        self._stream = stream
        self.cursor = cursor

    def batch(self, row_count: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each [row_count, length]; a target is its input's next token."""
        rows = np.stack([self._row(length + 1) for _ in range(row_count)]).astype(np.int64)
        tensor = torch.from_numpy(rows)
        return tensor[:, :-1].contiguous(), tensor[:, 1:].contiguous()

    def _row(self, length: int) -> NDArray[np.uint16]:
        ids, starts = self._stream.ids, self._stream.starts
        begin = int(starts[self.cursor])
        if begin + length > len(ids):
            self.cursor, begin = 0, 0
        self.cursor = int(np.searchsorted(starts, begin + length)) % len(starts)
        return ids[begin : begin + length]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Makes and encodes the corpus.",
        epilog="example: python -m deploy.models.train.data --work /tmp/demo",
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for the encoded corpus")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--conversations", type=int, default=100_000)
    arguments = parser.parse_args()
    prepare(arguments.work, arguments.seed, arguments.conversations)


if __name__ == "__main__":
    main()
