"""A stand-in for CuPy where there is no GPU: NumPy's memory behind arrays that mix with none of NumPy's.

It shows where code would mix them, or ask NumPy for what only the array's own library may do; not what a GPU computes.
"""

import sys
import types

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


entered: list = []  # devices that work goes to by a `with`, the last one now
fetched: list[int] = []  # sizes of the arrays that `get` took to the host


class Device:
    id, compute_capability = 0, "90"

    def __init__(self, number=0):
        pass

    def __enter__(self):
        entered.append(self)
        return self

    def __exit__(self, *error):
        entered.pop()
        return False

    def __eq__(self, other):
        return isinstance(other, Device)

    def __hash__(self):
        return 0

    def synchronize(self):
        pass


class ndarray(NDArrayOperatorsMixin):
    """An array of the device; `get` is the only way to the host."""

    def __init__(self, host):
        self._host = host

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method == "reduce" and ufunc not in (np.add, np.multiply):
            raise NotImplementedError(f"{ufunc.__name__}.reduce of CuPy")
        options = _inside(options) if out is None else {**_inside(options), "out": _inside(out)}
        return _outside(getattr(ufunc, method)(*_inside(inputs), **options))

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} of an array of the device")

    def __array__(self, *_, **__):
        raise TypeError("an array of the device is not converted silently; use get()")

    def __getitem__(self, key):
        return _outside(self._host[_inside(key, key=True)])

    def __setitem__(self, key, value):
        self._host[_inside(key, key=True)] = _inside(value)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return map(_outside, self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    __index__ = __int__

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._host, name)
        return _taking(found) if callable(found) else _outside(found)

    def get(self):
        fetched.append(self._host.size)
        return self._host.copy()

    @property
    def device(self):
        return Device()

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._host.ctypes.data, device_id=0)

    @property
    def __cuda_array_interface__(self):
        return {}


def _inside(x, key=False):
    """x with the device's arrays as NumPy's; those of the host are refused, but as a key (CuPy copies those)."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray) and not key:
        raise TypeError("an array of the host among those of the device")
    if isinstance(x, (tuple, list)):
        return type(x)(_inside(y, key) for y in x)
    return {name: _inside(y) for name, y in x.items()} if isinstance(x, dict) else x


def _outside(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    return type(x)(map(_outside, x)) if isinstance(x, (tuple, list)) and type(x) in (tuple, list) else x


def _taking(function):
    def run(*arguments, **options):
        if "initial" in options:
            raise TypeError("CuPy's reductions have no initial")
        return _outside(function(*_inside(arguments), **_inside(options)))

    return run


class _Module(types.ModuleType):
    ndarray = ndarray
    __version__ = "0"

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        taking = _taking(found)
        for part in ("reduce", "accumulate", "at"):
            if hasattr(found, part) and name in ("add", "multiply"):
                setattr(taking, part, _taking(getattr(found, part)))
        return taking

    @staticmethod
    def repeat(x, repeats, axis=None):
        if isinstance(repeats, ndarray):
            raise ValueError("CuPy repeats all entries as often")
        return _taking(np.repeat)(x, repeats, axis)

    @staticmethod
    def asarray(x, dtype=None):
        return ndarray(np.array(x._host if isinstance(x, ndarray) else x, dtype))


def install(monkeypatch):
    """Make `import cupy` find the stand-in as long as a test runs; only the backend "reference" takes its arrays."""
    from sparseattn import dispatch
    from sparseattn.selection import largest, topk

    module = _Module("cupy")
    module.cuda = types.SimpleNamespace(Device=Device)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(dispatch.BACKENDS, "cupy", ("reference",))
    monkeypatch.setattr(largest, "of_rows", lambda scores, *others: ndarray(topk.top_of_rows(scores._host, *others)))
    return module
