"""Peers side by side with sparseattn, in one process: what they run, how they are timed, how the result is shown."""
