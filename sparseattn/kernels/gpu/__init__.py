"""What the backends of a GPU share: tables of a pattern as their kernels read them, and the launches of a call.

Both backends have the same kernels with the same arguments; a backend's `Target` says how to run one.
"""
