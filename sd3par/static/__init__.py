"""An exported model: programs and parameters of every rank in a folder, and what runs them.

`export` writes them, `Export` reads what they are, and `transformer`, `text` and `vae` stand in for the model's own
parts, none of whose code they need.
"""
