"""What a checkpoint of a cycle holds: the model's tensors and, beside them, those of a learned strategy."""

from hashlib import sha256

import torch

from experiments.errors import Refused

PREFIX = "learner."  # of the learner's tensors in a checkpoint


def kept(model):
    """{name: tensor} of all that training can change: no frozen parameters, no tensor under a second name."""
    state, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        if not frozen and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


def load(model, state):
    """Put what `kept` gave back into a model of the same kind. Raises RuntimeError with the first three differences."""
    own = model.state_dict()
    unlike = [f"{name} is missing" for name in kept(model) if name not in state]
    unlike += [f"{name} is unknown" for name in state if name not in own]
    unlike += [
        f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if unlike:
        raise RuntimeError(", ".join(unlike[:3]) + (f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""))
    model.load_state_dict(state, strict=False)


def origin(model):
    """What a run's weights come from, as JSON values: sha256 of the frozen ones and of the files it was told of."""
    fixed = {name: tensor for name, tensor in model.named_parameters() if not tensor.requires_grad}
    files = dict(getattr(model, "pretrained", {}))
    return ({"frozen": hash_weights(fixed)} if fixed else {}) | ({"pretrained": files} if files else {})


def pack(model, learner):
    """The state dict of a checkpoint."""
    more = {} if learner is None else learner.state_dict(prefix=PREFIX)
    return {**kept(model), **more}


def unpack(state):
    """(the model's, the learner's) state dict of a checkpoint."""
    own = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    return own, {name.removeprefix(PREFIX): state[name] for name in state.keys() - own.keys()}


def hash_weights(state):
    """sha256 over names, shapes and bytes of a state dict."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy knows no bfloat16
    return digest.hexdigest()


def refuse_not_finite(state, what, fix):
    """Raise Refused if a tensor of a state dict holds a number that is not finite; `what` they are, and the `fix`."""
    numbers = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if numbers and not torch.stack([tensor.isfinite().all() for tensor in numbers.values()]).all():
        wrong = [name for name, tensor in numbers.items() if not tensor.isfinite().all()]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Refused(f"{what} are not finite ({wrong[0]}{more}): {fix}.")
