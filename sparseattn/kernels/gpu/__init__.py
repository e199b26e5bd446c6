"""What a backend of a GPU needs beside its kernels: tables of a pattern as they read them, and the launches of a call.

Nothing here names an array library or a language of kernels; a backend's `Target` says how to run one.
"""
