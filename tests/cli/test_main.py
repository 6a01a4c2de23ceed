import importlib
import importlib.metadata
import re
import shlex
import sys

import pytest

import tubevit
from tubevit.cli import main
from tubevit.cli.main import VERBS, _parse
from tubevit.errors import RunError, UserError
from tubevit.training.loop import Preempted

FLAGS = {
    "train": {"--config", "--workdir", "--allow-change", "--profile", "--print-sharding", "--coordinator"},
    "evaluate": {"--workdir", "--step", "--checkpoint", "--config", "--data", "--json", "--probe"},
    "predict": {"--checkpoint", "--json", "--csv", "--every", "--features", "--tokens"},
    "search": {"--checkpoint", "--top", "--json", "--csv", "--page"},
    "inspect": {"--config", "--json"},
    "preflight": {"--config", "--topology", "--suggest", "--effort", "--top-bytes", "--top-cycles", "--json"},
    "convert": {"--format", "--prefix", "--heads", "--headless", "--mean", "--std", "--json"},
    "export": {"--format", "--platforms", "--head"},
    "sparsify": {"--tubes", "--data", "--split", "--head", "--views", "--batch-size", "--json"},
    "make-moving-digits": {"--seed"},
    "report": {"--out"},
    "release": {"--step", "--bfloat16", "--config", "--licence", "--to", "--replace"},
    "shard-videos": {"--split", "--shards", "--processes", "--short-side", "--runner", "--beam", "--json"},
    "completion": {"--help"},
}


def module(verb):
    return importlib.import_module(f"tubevit.cli.{verb.replace('-', '_')}")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_flags_and_examples(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and f"  tubevit {verb} " in text
    assert FLAGS[verb] <= set(re.findall(r"--[\w-]+", text))
    for example in module(verb).EXAMPLES:
        assert example in text and example.startswith(f"tubevit {verb}")


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_understood(verb):
    for example in module(verb).EXAMPLES:
        _, _, *arguments = shlex.split(example, comments=True)
        _parse(verb, arguments[: arguments.index(">")] if ">" in arguments else arguments)


def test_files_before_and_behind_flags():
    for arguments, files in (
        (["a", "--checkpoint", "x", "b"], ["a", "b"]),
        (["--checkpoint", "x", "--", "-a", "--top"], ["-a", "--top"]),
    ):
        assert _parse("predict", arguments).files == files


OVERRIDES = {  # a command: its positionals and overrides
    "inspect --config q '--config.data.train.m.source=my clips.csv'": ([], {"data.train.m.source": "my clips.csv"}),
    "inspect --config q --config.model.tubes core a": (["a"], {"model.tubes": "core"}),
    "inspect a --config.seed -1 --config q b": (["a", "b"], {"seed": "-1"}),
    "inspect --config q -- --config.seed": (["--config.seed"], {}),
    "release --config q --config.train.steps 5 runs/a x@y": (["runs/a", "x@y"], {"train.steps": "5"}),
}


@pytest.mark.parametrize("command", OVERRIDES)
def test_overrides_are_no_positionals(command):
    verb, *arguments = shlex.split(command)
    args = _parse(verb, arguments)
    positionals = args.names if verb == "inspect" else [args.workdir, args.name]
    assert (positionals, args.config_overrides) == OVERRIDES[command] and args.config == "q"


def test_usage(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text and module(verb).HELP in text for verb in VERBS)
    assert set(FLAGS) <= set(VERBS)
    assert main([]) == 2


def test_version(capsys):
    """Those of the packages that are imported."""
    import av
    import cv2
    import flax
    import grain
    import jax
    import jaxlib
    import optax
    import orbax.checkpoint

    assert main(["--version"]) == 0
    lines = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.pop("Python") == sys.version.split()[0] and lines.pop("tubevit") == tubevit.__version__
    assert lines.pop("opencv-python-headless").startswith(cv2.__version__)
    assert lines.pop("orbax-checkpoint") == orbax.checkpoint.__version__
    assert lines.pop("grain") == importlib.metadata.version(grain.__name__)
    assert lines == {module.__name__: module.__version__ for module in (jax, jaxlib, flax, optax, av)}


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["trian"], ["unknown verb 'trian'; did you mean 'train'"]),
        (["--json"], ["unknown verb '--json'"]),
        (["predict", "--checkpoint", "x", "a.mp4", "--workdir=y"], ["tubevit predict has no argument '--workdir=y'"]),
        (["train", "--config", "x", "--workdir", "y", "--json"], ["tubevit train has no argument '--json'"]),
        (["evaluate", "--workdir", "y", "--top=3"], ["tubevit evaluate has no argument '--top=3'"]),
        (["inspect", "tubevit_b16", "--frame=3"], ["no argument '--frame=3'; did you mean '--frames'"]),
        (["inspect", "tubevit_b16", "--fra", "3"], ["no argument '--fra'"]),  # no abbreviations
        (["predict", "--checkpoint", "x", "a.mp4", "--config.seed=1"], ["no argument '--config.seed=1'"]),
        (
            ["inspect", "tubevit_b16", "--frames", "many"],
            ["--frames: must be a whole number, at least 1; found 'many'"],
        ),
        (["train", "--config", "quickstart"], ["required: --workdir (see tubevit train --help)"]),
        (["evaluate", "--workdir", "a", "--config.seed=1"], ["pass it with --config FILE"]),
        (["evaluate"], ["one of the arguments --workdir --checkpoint is required"]),
        (["evaluate", "--workdir", "a", "--checkpoint", "b"], ["not allowed with"]),
        (["predict", "--checkpoint", "x"], ["FILE_OR_DIR"]),
        (["train", "--config", "quickstart", "--workdir", "x", "--config.seed"], ["--config.seed needs a value"]),
        (["train", "--config", "quickstart", "--config.seed", "--workdir", "x"], ["--config.seed needs a value"]),
        (["train", "--config", "quickstart", "--workdir", "x", "more"], ["no argument 'more'"]),
    ],
)
def test_bad_flags(refused, arguments, parts):
    assert refused(arguments, *parts) == ""


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("bad\n  input"), 2, "tubevit: bad input\n"),
        (RunError("saving failed"), 1, "tubevit: saving failed\n"),
        (OSError(28, "No space left on device"), 1, "tubevit: [Errno 28] No space left on device\n"),
        (Preempted("saved step 5"), 75, "tubevit: saved step 5\n"),
        (KeyboardInterrupt(), 1, "tubevit: interrupted\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, text):
    def fail(args):
        raise error

    monkeypatch.setattr(module("inspect"), "run", fail)
    assert main(["inspect", "x"]) == code
    assert capsys.readouterr().err == text


def test_tracebacks_of_defects_and_with_debug(monkeypatch, capsys):
    def fail(args):
        raise failure

    monkeypatch.setattr(module("inspect"), "run", fail)
    failure = ZeroDivisionError("a defect")
    assert main(["inspect", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err
    failure = UserError("bad input")
    assert main(["inspect", "x", "--debug"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith("tubevit: bad input\n")


def test_make_moving_digits(done, refused, tmp_path, digits_cache):
    text = done(["make-moving-digits", tmp_path / "a", "--train-clips", 8, "--held-out-digits", 1, "--seed", 5])
    assert "8 train clips, 4 val clips, 4 test clips, 5388 train images, 2 val images, 2 test images" in text
    assert len(list((tmp_path / "a" / "videos").rglob("*.mp4"))) == 16
    (tmp_path / "file").write_text("")
    refused(["make-moving-digits", tmp_path / "file"], f"{tmp_path}/file")
    refused(["make-moving-digits", tmp_path / "file" / "x"], f"cannot write {tmp_path}/file/x")
    refused(
        ["make-moving-digits", tmp_path / "b", "--held-out-digits", 226],
        "--held-out-digits: must be at least 1 and at most 225; found '226'",
    )
