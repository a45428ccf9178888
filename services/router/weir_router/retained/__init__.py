"""Streams that outlive their client's call: retained, resumed, ended by request, found again by an idempotency key.

options    what a request asks for, and the fingerprint of its body
entry      an event of a stream as an entry of a log
cut        the rest of a stream, from any token of each output
log        what was said: appended to, read from any place, bounded
reader     one call that reads a log, at its own pace
stream     one log, who writes it and who reads it, and until when it is kept
kept       all streams of this router: found by name and by key, bounded, forgotten when their time is over
requests   the door: run, resume, cancel
"""
