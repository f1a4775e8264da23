"""What the layers of a network put out, for features and for losses on them."""

from contextlib import contextmanager

from experiments.errors import Refused


@contextmanager
def layer_outputs(model, paths):
    """A function that gives the maps (B, D, h, w) that these modules (one path or several) put out in the last forward.

    In their order; of a module that puts out a list or a dict all maps in it. Raises Refused for one without any.
    """
    paths, made = [paths] if isinstance(paths, str) else paths, {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: made.__setitem__(path, out))
        for path in paths
    ]

    def found(path):
        if path not in made:
            raise Refused(f"LAYERS of the model names {path}, which takes no part in its forward: name another.")
        known = list(maps(made[path]))
        if not known:
            shape = f" but {tuple(made[path].shape)}" if hasattr(made[path], "shape") else ""
            raise Refused(f"LAYERS of the model names {path}, which puts out no map (B, D, h, w){shape}: name another.")
        return known

    try:
        yield lambda: [each for path in paths for each in found(path)]
    finally:
        for hook in hooks:
            hook.remove()


def maps(output):
    """The tensors of four dimensions in a tensor, a list or a dict."""
    if hasattr(output, "shape"):
        yield from [output] if output.dim() == 4 else []
    elif hasattr(output, "values"):
        yield from maps(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from maps(part)
