"""`Engine` on any server that speaks `openengine.v1`: the engine runs in another process, of another's making.

submit, abort ─▶ Work, our queue before it ─▶ Generate, one call for each output ─▶ Cursor ─▶ StepOutput
                 Link: is it there, is it still the same, does it answer?
                 Observer: load and block events, where it tells them
"""
