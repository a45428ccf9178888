"""Adapters as operations: what a PEFT directory says, which names are loaded, and who uses them."""
