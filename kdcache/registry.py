"""Registries of extensions: map names to the import paths of their code.

A registry holds text, so reading it (for help and validation) imports nothing. The code is imported
when it is used. Wherever a registry is read, `module:name` stands for the user's own code.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError

_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Registry(Mapping[str, Any]):
    """The extensions of one kind, by name.

    `registry[name]` imports the code. Iterating, `in` and `require` import nothing.

    Args:
        option: the option that takes a name, without dashes, such as `score`.
        places: name -> "module:attribute".
    """

    def __init__(self, option: str, places: Mapping[str, str]) -> None:
        self.option = option
        self._places = places

    def __repr__(self) -> str:
        """Return the option and its names."""
        return f"Registry({self.option!r}: {', '.join(self)})"

    def __getitem__(self, name: str) -> Any:
        """Import and return the extension of a name of the registry."""
        module, _, attribute = self._places[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in their order in help texts."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        """Return True if the registry has the name; imports nothing."""
        return name in self._places

    def require(self, name: str) -> None:
        """Check a name without importing anything.

        Raises:
            ConfigError: if the name is neither of the registry nor of the form `module:name`.
        """
        if name not in self and not is_user_code(name):
            raise ConfigError(
                parameter=self.option, value=name, rule=f"one of {', '.join(self)}, or module:name"
            )

    def load(self, name: str) -> Callable[..., Any]:
        """Return the extension of a name of the registry, or the user's own of `module:name`.

        Raises:
            ConfigError: if there is none.
        """
        self.require(name)
        if name in self:
            found: Callable[..., Any] = self[name]
            return found
        return load_user_code(name, option=self.option)

    def described(self) -> str:
        """Return the names for a help text."""
        return f"{', '.join(self)}, or module:name"


def is_user_code(name: str) -> bool:
    """Return True if the name has the form `module:name`."""
    return _MODULE_NAME.fullmatch(name) is not None


def load_user_code(spec: str, *, option: str) -> Callable[..., Any]:
    """Import `module:name`, from the current folder or anywhere on Python's path.

    Args:
        spec: `module:name`.
        option: the option that took it, without dashes, for messages.

    Raises:
        ConfigError: if the import fails, or what it gives cannot be called.
    """
    module_name, _, attribute = spec.partition(":")
    # As `python -m` does, so that a module beside the user is found by the console script too.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (sys.path holds strings)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            parameter=option,
            value=spec,
            rule=f"module:callable, but {error}",
            remedy="Run in the module's folder, or set PYTHONPATH",
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(
            parameter=option,
            value=spec,
            rule=f"module:callable, but {attribute} is {type(found).__name__}",
        )
    return found


def user_code_digest(spec: str) -> str:
    """Return the hex sha256 of the file that holds the code of `module:name`, once loaded.

    It tells a result of this version of the code from one of another version.
    """
    path = getattr(sys.modules[spec.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
