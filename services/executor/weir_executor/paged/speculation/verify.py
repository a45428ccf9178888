"""Which drafts stand: those that the model would have drawn itself.

A step computes the logits after a sequence's last token and after each of its drafts. At every one of these places a
token is drawn as if there were no drafts: from the model's own distribution after the tokens before that place, with
the random number of that place (see `philox.py`). The drafts stand as far as they equal what was drawn before them;
the first draw that differs, or the one after the last draft, is the step's own new token.

    own      … t        │ draft   a   b   c   │
    draws        a   b  │ x                      after t: a; after a: b; after b: x, so that c is wrong
    kept         a   b    x

So an output's tokens do not depend on drafts at all: they are equal with and without, greedy or sampled, which is more
than equal in distribution. Rejection sampling (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318)
spends random numbers on accepting and on what it draws instead, so its tokens change with the drafts though their
distribution does not: a preempted or resumed output would go on differently.

What it costs: for a draft that is a mere guess (n-gram) nothing, since both ways accept d with the model's p(d). A
draft model q that draws with the same random number as the model p draws the same token at most as often as rejection
sampling accepts, the sum of min(p, q), and about as often where p and q are alike or one token has nearly all of both;
at temperature 0 they are the same. Tokens that no drafter can change are the "drafter-invariant" decoding of Daliri,
Musco and Suresh (arXiv:2408.07978), here with the inverse CDF that the sampler uses anyway in place of their Gumbel
noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_executor.paged.worker import Draw


def accept(draws: Sequence[Draw], draft_token_ids: Sequence[int]) -> Sequence[Draw]:
    """Of the draws at all places, those that count: one more than there are drafts that stand; none of none."""
    assert not draft_token_ids or len(draws) == len(draft_token_ids) + 1, (len(draws), len(draft_token_ids))
    pairs = zip(draws, draft_token_ids, strict=False)
    standing = next((i for i, (draw, draft) in enumerate(pairs) if draw.token_id != draft), len(draft_token_ids))
    return draws[: standing + 1]
