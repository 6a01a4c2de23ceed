"""The public errors share one base and are not caught by accident as built-in ones."""

import inspect

import tubevit
from tubevit import errors


def test_all_errors_have_one_base_that_is_no_built_in_error():
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert len(classes) >= 7 and all(issubclass(value, tubevit.TubeViTError) for value in classes)
    assert tubevit.TubeViTError.__bases__ == (Exception,)
    assert not any(issubclass(value, ValueError | RuntimeError | OSError) for value in classes)
