"""torch.compile is refused where there is no compiler."""

from __future__ import annotations

import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.training.compiling import require_compiler


def test_a_compiler_that_is_there_is_accepted(monkeypatch, tmp_path):
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    require_compiler(torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "usual", "variable"), [("cpu", "g[+][+]", "CXX"), ("cuda", "gcc", "CC")]
)
def test_a_missing_compiler_is_named(monkeypatch, tmp_path, device, usual, variable):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=rf"torch\.compile needs the compiler {usual}, which"):
        require_compiler(torch.device(device))
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(
        ConfigError, match=f"no-such-compiler, which is not found.* with {variable}"
    ):
        require_compiler(torch.device(device))
