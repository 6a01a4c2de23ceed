"""The public errors share one base and are not caught by accident as built-in ones."""

import inspect

import pytest

import tubevit
from tubevit import errors


def test_all_errors_have_one_base_that_is_no_built_in_error():
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert len(classes) >= 7 and all(issubclass(value, tubevit.TubeViTError) for value in classes)
    assert tubevit.TubeViTError.__bases__ == (Exception,)
    assert not any(issubclass(value, ValueError | RuntimeError | OSError) for value in classes)


def test_a_broken_package_is_named(tmp_path, monkeypatch):
    """One that is installed, but does not fit another one, is no bug of ours."""
    (tmp_path / "does_not_fit.py").write_text("raise TypeError('metaclass\\nconflict')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        tubevit.UserError, match=r"needs does_not_fit, .* imported \(TypeError: metaclass conflict\): pip"
    ):
        errors.optional_import("does_not_fit", "this", "wandb")
    (tmp_path / "lacks_another.py").write_text("import is_not_there\n")
    with pytest.raises(tubevit.UserError, match=r"needs lacks_another, .* imported \(ModuleNotFoundError: No module"):
        errors.optional_import("lacks_another", "this", "wandb")
    with pytest.raises(tubevit.UserError, match="needs is_not_there, which is not installed: pip install"):
        errors.optional_import("is_not_there.inner", "this", "wandb")
