"""What backends share whose scheduler is not ours: requests, our queue before the engine, and its words as steps.

submit, abort ─▶ (any thread) ─▶ a loop of the backend's own: Line ─▶ the engine ─▶ Line ─▶ Outlet ─▶ StepOutput
"""
