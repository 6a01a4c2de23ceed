import pytest

from tubevit.cli import main


@pytest.fixture
def refused(capsys):
    """`refused(arguments, *parts)`: bad input is one line on stderr that holds the parts, and exit code 2."""

    def check(arguments, *parts):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("tubevit: ") and err.endswith("\n") and err.count("\n") == 1
        for part in parts:
            assert part in err
        return out

    return check


@pytest.fixture
def done(capsys):
    """`done(arguments)`: what is printed on stdout; exit code 0."""

    def check(arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return check
