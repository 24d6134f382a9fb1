"""Checkpoints of other systems in, children out."""
