"""Logits → token ids, one program per row, without a sort and without the host.

What it draws is what `sampler.sample` draws for a row that asks for no penalties, biases or log-probabilities: the
same rules in the same order. Where the sampler sorts, this searches: a threshold on probabilities is found bit by bit
(of non-negative floats, the order is that of their bits), by passes that sum what lies at or above 32 candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def draw(logits, asked, drawn, vocab, stride, TILE: tl.constexpr):
    """`logits` [rows, vocab] float32. `asked` [rows, 8] int32: the bits of temperature, top-p and min-p; top-k; the
    seed's lower and upper half; output index; position. `drawn` [rows] int32; -1 where logits are not finite.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    asked += row * 8
    lane = tl.arange(0, TILE)
    best = tl.full((TILE,), float("-inf"), tl.float32)
    best_id = tl.zeros((TILE,), tl.int32)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        is_token = start + lane < vocab
        x = tl.load(logits + start + lane, mask=is_token, other=float("-inf"))
        total += tl.where(is_token, x, 0.0)
        best_id = tl.where(x > best, start + lane, best_id)
        best = tl.maximum(best, x)
    highest = tl.max(best, 0)
    token = tl.min(tl.where(best == highest, best_id, vocab), 0)
    total_sum = tl.sum(total, 0)
    is_sound = tl.abs(total_sum) < float("inf")  # which no NaN is
    temperature = tl.load(asked).to(tl.float32, bitcast=True)
    if is_sound & (temperature > 0.0):
        token = _draw(logits, asked, highest, temperature, vocab, TILE)
    tl.store(drawn + row, tl.where(is_sound, token, -1))


@triton.jit
def _draw(logits, asked, highest, temperature, vocab, TILE: tl.constexpr):
    lane = tl.arange(0, TILE)
    mass = tl.zeros((TILE,), tl.float64)
    for start in range(0, vocab, TILE):
        mass += _power(logits, start + lane, highest, temperature, vocab).to(tl.float64)
    total_power = tl.sum(mass, 0).to(tl.float32)

    least = _top_k(logits, tl.load(asked + 3), highest, temperature, total_power, vocab, TILE)
    top_p = tl.load(asked + 1).to(tl.float32, bitcast=True)
    least = tl.maximum(least, _top_p(logits, top_p, least, highest, temperature, total_power, vocab, TILE))
    min_p = tl.load(asked + 2).to(tl.float32, bitcast=True)
    least = tl.maximum(least, min_p / total_power)

    kept_mass = tl.zeros((TILE,), tl.float64)
    for start in range(0, vocab, TILE):
        p = _power(logits, start + lane, highest, temperature, vocab) / total_power
        kept_mass += tl.where(p >= least, p, 0.0).to(tl.float64)
    point = uniform(tl.load(asked + 4), tl.load(asked + 5), tl.load(asked + 6), tl.load(asked + 7))
    point *= tl.sum(kept_mass, 0)

    # The first kept token beyond the point; rounding may leave none, and then it is the last one kept.
    before = tl.sum(tl.zeros((TILE,), tl.float64), 0)
    token = vocab
    last = 0
    for start in range(0, vocab, TILE):
        p = _power(logits, start + lane, highest, temperature, vocab) / total_power
        is_kept = (p >= least) & (start + lane < vocab)
        kept = tl.where(is_kept, p, 0.0).to(tl.float64)
        is_beyond = is_kept & (before + tl.cumsum(kept, 0) > point)
        token = tl.minimum(token, tl.min(tl.where(is_beyond, start + lane, vocab), 0))
        last = tl.maximum(last, tl.max(tl.where(is_kept, start + lane, 0), 0))
        before += tl.sum(kept, 0)
    return tl.where(token < vocab, token, last)


@triton.jit
def _power(logits, place, highest, temperature, vocab):
    """What a token's probability is proportional to."""
    x = tl.load(logits + place, mask=place < vocab, other=float("-inf"))
    return tl.exp((x - highest) / temperature)


@triton.jit
def _top_k(logits, top_k, highest, temperature, total_power, vocab, TILE: tl.constexpr):
    """The probability of the top_k-th likeliest token; 0 keeps all."""
    least = total_power * 0.0
    if top_k > 0:
        wanted = tl.minimum(top_k, vocab).to(tl.float64)
        least = _search(logits, wanted, least, highest, temperature, total_power, vocab, TILE, COUNT=True)
    return least


@triton.jit
def _top_p(logits, top_p, floor, highest, temperature, total_power, vocab, TILE: tl.constexpr):
    """The probability of the last token needed to reach `top_p` of the mass at or above `floor`."""
    least = floor
    if top_p < 1.0:
        lane = tl.arange(0, TILE)
        mass = tl.zeros((TILE,), tl.float64)
        for start in range(0, vocab, TILE):
            p = _power(logits, start + lane, highest, temperature, vocab) / total_power
            mass += tl.where(p >= floor, p, 0.0).to(tl.float64)
        wanted = tl.sum(mass, 0) * top_p.to(tl.float64)
        least = _search(logits, wanted, floor, highest, temperature, total_power, vocab, TILE, COUNT=False)
    return least


@triton.jit
def _search(logits, wanted, floor, highest, temperature, total_power, vocab, TILE: tl.constexpr, COUNT: tl.constexpr):
    """The highest probability such that the tokens at or above it, and at or above `floor`, come to what is wanted."""
    candidate = tl.arange(0, 32)
    narrow: tl.constexpr = TILE // 4
    lane = tl.arange(0, narrow)
    found = (floor * 0.0).to(tl.int32)
    for turn in range(6):
        shift = 25 - 5 * turn  # of the 30 bits that a number up to 1 has
        bits = found | (candidate << shift)
        sums = tl.zeros((32,), tl.float64)
        for start in range(0, vocab, narrow):
            place = start + lane
            p = _power(logits, place, highest, temperature, vocab) / total_power
            is_above = (p.to(tl.int32, bitcast=True)[:, None] >= bits[None, :]) & ((p >= floor) & (place < vocab))[
                :, None
            ]
            weight = tl.where(is_above, 1.0, 0.0) if COUNT else tl.where(is_above, p[:, None], 0.0)
            sums += tl.sum(weight, 0).to(tl.float64)
        # Higher candidates have less above them. The lowest has enough, but for rounding.
        enough = tl.sum((sums >= wanted).to(tl.int32), 0)
        found = found | (tl.maximum(enough - 1, 0) << shift)
    return found.to(tl.float32, bitcast=True)


@triton.jit
def uniform(seed_low, seed_high, output_index, position):
    """The number in [0, 1) that `philox.uniforms` gives: of 53 random bits, by Philox4x32-10."""
    c0 = position.to(tl.uint32, bitcast=True)
    c1 = c0 * 0
    c2 = output_index.to(tl.uint32, bitcast=True)
    c3 = c1
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    left: tl.constexpr = tl.constexpr(0xD2511F53)
    right: tl.constexpr = tl.constexpr(0xCD9E8D57)
    for _ in tl.static_range(10):
        low0 = c0.to(tl.uint64) * left
        low2 = c2.to(tl.uint64) * right
        c0 = (low2 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (low0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = low2.to(tl.uint32)
        c3 = low0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    bits = ((c0 >> 5).to(tl.int64) << 26) | (c1 >> 6).to(tl.int64)
    return bits.to(tl.float64) * 1.1102230246251565e-16
