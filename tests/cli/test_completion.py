import re
import shutil
import subprocess

import pytest

from tubevit.cli import main
from tubevit.cli.main import VERBS, make_parser


@pytest.fixture(scope="module")
def scripts():
    import io
    from contextlib import redirect_stdout

    found = {}
    for shell in ("bash", "zsh"):
        with redirect_stdout(io.StringIO()) as out:
            assert main(["completion", shell]) == 0
        found[shell] = out.getvalue()
    return found


def flags(verb):
    """As the help of the verb shows them."""
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", make_parser(verb).format_usage()))


@pytest.fixture(scope="module")
def completed(scripts, tmp_path_factory):
    """`completed(["predict", "--ch"])`: what bash offers for the last word."""
    assert shutil.which("bash")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "script").write_text(scripts["bash"])
    (folder / "clip.mp4").touch()

    def ask(lines):
        """Asks for all lines in one bash."""
        program = "source ./script\n"
        for words in lines:
            quoted = " ".join(f"'{word}'" for word in ["tubevit", *words])
            program += f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _shtab_tubevit; echo ${{COMPREPLY[@]}}\n"
        done = subprocess.run(["bash", "--norc", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
        return [set(line.split()) for line in done.stdout.splitlines()]

    return ask


def test_bash_offers_verbs_flags_choices_and_files(completed):
    lines = [[""], ["pre"], ["predict", "--ch"], ["export", "--format", ""], ["predict", "cl"], ["completion", ""]]
    verbs, some, checkpoint, formats, files, shells = completed(lines)
    assert verbs == set(VERBS) and some == {"predict", "preflight"} and checkpoint == {"--checkpoint"}
    assert formats == {"safetensors", "jax", "torch", "onnx"} and files == {"clip.mp4"} and shells == {"bash", "zsh"}


def test_bash_offers_the_flags_of_each_verb(completed):
    for verb, offered in zip(VERBS, completed([[verb, "--"] for verb in VERBS]), strict=True):
        assert offered - {"--help"} == flags(verb) - {"--help"}, verb


def test_zsh_has_all_verbs_and_flags(scripts):
    """No flag may be missing, and nothing that zsh would take for the end of a message may stand in one."""
    script = scripts["zsh"]
    assert script.startswith("#compdef tubevit")
    for verb in VERBS:
        (options,) = re.findall(rf"^_shtab_tubevit_{verb.replace('-', '_')}_options=\((.*?)^\)", script, re.M | re.S)
        assert {*re.findall(r'^ +"[^"]*?(--[\w-]+)', options, re.M)} >= flags(verb), verb
        for line in options.splitlines():
            specification = re.sub(r"\\.", "", line)  # without what is escaped
            action = re.search(r"\](:.*)?\"$", specification)
            assert action is None or (action.group(1) or "").count(":") in (0, 2), line
    if shell := shutil.which("zsh"):
        assert subprocess.run([shell, "-n", "-c", script], capture_output=True).returncode == 0


def test_another_shell(refused):
    refused(["completion", "fish"], "invalid choice: 'fish'", "'bash', 'zsh'")
