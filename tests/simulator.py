"""Numba's simulator of a GPU, made steady and quick: threads take turns; all memory starts as NaN."""

import sys
import threading

import numpy as np


def install(monkeypatch):
    """For the length of a test, the simulator runs and `numpy.empty` fills memory as the functions below say."""
    from numba.cuda.simulator import kernel, kernelapi

    monkeypatch.setattr(kernel.BlockManager, "run", _run(kernel.BlockThread))
    monkeypatch.setattr(kernelapi.FakeCUDAShared, "array", _shared)
    monkeypatch.setattr(np, "empty", _filled(np.empty))
    monkeypatch.setattr(kernel.FakeCUDAKernel, "__call__", _call(kernel.FakeCUDAKernel.__call__))


def _run(thread_type):
    """BlockManager.run for threads of one at a time, each as far as the next barrier, always in the same order."""
    class Turn(thread_type):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.mine, self.done, self.over = threading.Lock(), threading.Lock(), False
            self.mine.acquire()
            self.done.acquire()

        def run(self):
            self.mine.acquire()
            super().run()
            self.over = True
            self.done.release()

        def syncthreads(self):
            self.done.release()
            self.mine.acquire()
            if self.abort:
                raise RuntimeError("another thread failed")

        def go_on(self):
            self.mine.release()
            self.done.acquire()

    def run(self, grid_point, *arguments):
        threads = [Turn(lambda: self._f(*arguments), self, grid_point, point, self._debug)
                   for point in np.ndindex(*self._block_dim)]
        for thread in threads:
            thread.start()
        while waiting := [thread for thread in threads if not thread.over]:
            for thread in waiting:
                thread.abort = any(other.exception for other in threads)
                thread.go_on()
        for thread in threads:
            if thread.exception:
                raise thread.exception[0].with_traceback(thread.exception[1])

    return run


def _call(launch):
    """FakeCUDAKernel.__call__ that lets functions of a device alone: here none of them uses `cuda`."""
    def call(self, *arguments):
        return self.fn(*arguments) if self._device else launch(self, *arguments)

    return call


def _shared(self, shape, dtype):
    """FakeCUDAShared.array: the one array of the caller's line."""
    caller = sys._getframe(1)
    place = caller.f_code, caller.f_lineno
    if place not in self._allocations:
        self._allocations[place] = np.empty(shape, dtype)
    return self._allocations[place]


def _filled(empty):
    """numpy.empty with all bits set: floating numbers are NaN, indices reach nowhere."""
    def filled(*arguments, **options):
        array = empty(*arguments, **options)
        if array.size and not array.dtype.hasobject:
            array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    return filled
