"""What makes a run: choosing components, the data path, training, prediction, evaluation, the ledger."""

import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

# a second job on the machine otherwise slows torch's spinning threads down twentyfold; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # sacred 0.8.7 imports it


class _Later(ModuleType):
    """Stands in for torch, which takes seconds to import, until it is used: a typo is refused before.

    It is an import finder and loader too, so that `import torch.nn.functional` gets the module that loading torch
    has just made, not a second copy of it.
    """

    find_distributions = None  # importlib.metadata asks every finder for it, munch at import: no reason to load

    def invalidate_caches(self):
        """Nothing is cached; asked of every finder too."""

    def __getattr__(self, name):
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
            sys.meta_path.remove(self)
        return getattr(import_module(self.__name__), name)

    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{self.__name__}."):
            assert self.nn  # loads it
            return spec_from_loader(name, self) if name in sys.modules else None

    def create_module(self, spec):
        self.made = sys.modules[spec.name]
        self.made_by = self.made.__spec__
        return self.made

    def exec_module(self, module):
        module.__spec__ = self.made_by


if "torch" not in sys.modules:
    later = _Later("torch")
    later.__spec__ = find_spec("torch")
    later.__file__, later.__version__ = later.__spec__.origin, version("torch")
    later.__path__ = later.__spec__.submodule_search_locations
    sys.modules["torch"] = later
    sys.meta_path.insert(0, later)
