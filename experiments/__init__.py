"""What makes a run: choosing components, the data path, training, prediction, evaluation, the ledger."""

import os
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.metadata import version
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

# a second job on the machine otherwise slows torch's spinning threads down twentyfold; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # sacred 0.8.7 imports it


class _Later(ModuleType):
    """Stands in for torch, which takes seconds to import, until it is used: a typo is refused before."""

    def __getattr__(self, name):
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


class _Submodules(MetaPathFinder, Loader):
    """`import torch.nn.functional` gets the module that loading torch has just made, not a second copy of it."""

    def find_spec(self, name, path, target=None):
        if name.startswith("torch.") and type(sys.modules["torch"]) is _Later:
            sys.modules["torch"].__getattr__("nn")  # loads it
            if name in sys.modules:
                self.made = sys.modules[name]
                # with a spec of its own Python would take that one instead of ours
                self.made_by, self.made.__spec__ = self.made.__spec__, None
                return spec_from_loader(name, self)

    def create_module(self, spec):
        return self.made

    def exec_module(self, module):
        module.__spec__ = self.made_by


missing = [name for name in ("torch", "sacred", "numpy", "baal", "PIL", "yaml") if find_spec(name) is None]
if missing:
    sys.exit(
        f"AskMask's packages are not in this Python ({', '.join(missing)}): "
        "activate .venv (`. .venv/bin/activate`) or run `make demo`."
    )
if "torch" not in sys.modules:
    later = _Later("torch")
    later.__spec__ = find_spec("torch")
    later.__file__, later.__version__ = later.__spec__.origin, version("torch")
    later.__path__ = later.__spec__.submodule_search_locations
    sys.modules["torch"] = later
    sys.meta_path.insert(0, _Submodules())
