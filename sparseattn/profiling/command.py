"""`sparseattn profile FILE`: from saved arrays to a report, a recommendation and pictures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from sparseattn.profiling.profile import profile
from sparseattn.profiling.recommend import recommend

NAMES = ("q", "k", "v")


def read(path) -> dict[str, np.ndarray]:
    """q, k and, where it is there, v of a `.npz` file. NumPy has no bfloat16 of its own: what else stands for it is
    refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES if name in file.files}
            found = file.files
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no .npz file of arrays ({error}); write one with np.savez({str(path)!r}, q=q, "
                         "k=k, v=v)") from None
    if not {"q", "k"} <= set(arrays):
        raise ValueError(f"{path} holds {', '.join(found) or 'nothing'}; expected arrays named q, k and v: "
                         f"np.savez({str(path)!r}, q=q, k=k, v=v)")
    for name, x in arrays.items():
        if x.dtype.kind != "f":
            raise ValueError(f"{name} in {path} is {x.dtype}; save it as float32 (or float16, float64)")
    return arrays


def run(path, out, *, causal, scale=None, rows=None, **asked):
    """Profile the arrays of a file, print the tables, write everything into the folder `out`; returns what is written.

    asked : keywords of `recommend`.
    """
    arrays = read(path)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = profile(**arrays, causal=causal, scale=scale, rows=rows)
    rec = recommend(found, **asked)
    print(found, rec, sep="\n\n")
    rec.save(folder / "recommendation.npz")
    (folder / "report.txt").write_text(f"{found}\n\n{rec}\n", encoding="utf-8")
    (folder / "heads.json").write_text(json.dumps([_plain(choice) for choice in rec.heads], indent=1), encoding="utf-8")
    return ["report.txt", "heads.json", "recommendation.npz", *_pictures(found, rec, folder)]


def _plain(choice):
    """A HeadChoice as JSON holds it."""
    own = {name: getattr(choice, name) for name in choice.__dataclass_fields__ if name != "candidate"}
    options = {name: list(x) if isinstance(x, tuple) else x for name, x in choice.candidate.options.items()}
    return {"choice": choice.choice, "family": choice.candidate.family, "options": options} | own


def _pictures(found, rec, folder):
    if importlib.util.find_spec("matplotlib") is None:
        print("No pictures: matplotlib is not installed; pip install 'sparseattn[plot]'")
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = []
    for name, drawn in (("profile.png", found.plot()), ("recommendation.png", rec.plot())):
        figure = np.asarray(drawn).flat[0].figure
        FigureCanvasAgg(figure)
        figure.savefig(folder / name, dpi=120)
        names.append(name)
    return names
