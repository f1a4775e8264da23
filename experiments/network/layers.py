"""What the layers of a network put out, for features and for losses on them."""

from contextlib import contextmanager


@contextmanager
def layer_outputs(model, paths):
    """A function that gives what these modules (one path or several) put out in the last forward, in their order."""
    paths, made = [paths] if isinstance(paths, str) else paths, {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: made.__setitem__(path, out))
        for path in paths
    ]
    try:
        yield lambda: [made[path] for path in paths]
    finally:
        for hook in hooks:
            hook.remove()
