"""Who holds which KV blocks: told by its source as a numbered log, and followed by others without ever skipping.

blocks       the events, and what they leave behind: the log of a source (`event_log.EventLog` of them)
wire         how a log travels: subjects, batches under a size, answers in pieces
publisher    a log → the broker
progress     what a follower knows of one source: up to where, and whether it must ask. Pure
follower     the broker → who wants to know

    source    batch 5…7      batch 8      ·····lost·····     heartbeat 12                      12: nothing to tell
    follower      7             8                            8 < 12: asks from 9 on  ─▶  events 9…12, or a reset
"""
