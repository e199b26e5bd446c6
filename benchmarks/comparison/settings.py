"""Sizes of a comparison: the full ones, for which the bars are meant, and quick ones that only show that it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    n_tokens: int  # of the workloads that all peers can hold
    n_long: int  # of those that only sparse peers can
    grid: int  # tokens along a side of a square grid
    window: int  # keys, self included
    stride: int
    n_cache: int  # keys a decoding query reads
    n_scattered: int  # keys a query where they are random
    n_calls: int  # back to back, where a single call is too short to time
    matrix: int  # rows and columns of the matrix product
    n_read: int  # bytes of the array whose reading gives the bandwidth: well over any cache
    repeats: int
    pause: float  # seconds between contestants


FULL = Settings(n_tokens=4096, n_long=16384, grid=128, window=256, stride=128, n_cache=32768, n_scattered=32,
                n_calls=1000, matrix=1024, n_read=1 << 29, repeats=7, pause=0.25)
QUICK = Settings(n_tokens=256, n_long=512, grid=32, window=64, stride=16, n_cache=1024, n_scattered=8,
                 n_calls=20, matrix=1024, n_read=1 << 24, repeats=2, pause=0.01)
