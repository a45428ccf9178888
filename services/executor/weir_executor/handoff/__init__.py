"""One executor computes a prompt, another goes on with it.

    prefill   RequestEnd ─▶ table.open  ─▶ a lease on the prompt's blocks, held in the engine's pool      table.py
              ReadHandoff ─▶ engine.read_held, a few MiB at a time                                        reading.py
    decode    Submit.take_over ─▶ ReadHandoff → verified → `stored_prefix`                                take_over.py

A handover is an optimisation: late, lapsed or broken off, it costs the prompt's computation and no token changes.
"""
