"""What makes a run: choosing components, the data path, training, prediction, evaluation, the ledger."""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec

# torch takes seconds to import: it is loaded at its first use, so that a typo is refused before
if "torch" not in sys.modules:
    _spec = find_spec("torch")
    _spec.loader = LazyLoader(_spec.loader)
    sys.modules["torch"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["torch"])
