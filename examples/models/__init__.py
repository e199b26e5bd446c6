"""Forward passes of published models in NumPy; each leaves its attention to `attend(layer, q, k, v)`."""
