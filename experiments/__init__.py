"""What makes a run: choosing components, the data path, training, prediction, evaluation, the ledger."""

import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
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


if "torch" not in sys.modules:
    later = _Later("torch")
    later.__spec__ = find_spec("torch")
    later.__file__, later.__version__ = later.__spec__.origin, version("torch")
    sys.modules["torch"] = later
