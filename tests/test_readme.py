"""The README and the pages, as a new user would follow them: Python, commands, links, tables, figure."""

import pathlib
import re
import shlex
import shutil

import pytest
from flax import nnx

import tubevit
from tests.scripts import script
from tubevit.cli import main
from tubevit.cli.main import VERBS, make_parser
from tubevit.config import load_config
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.models.config import Head
from tubevit.models.flops import count_parameters
from tubevit.models.tubevit import TubeViT
from tubevit.models.variants import ARCHITECTURES, model_config
from tubevit.tubes import PRESETS

STEPS = "--config.train.steps=1200"
ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {"README": README, "CONTRIBUTING": (ROOT / "CONTRIBUTING.md").read_text(), **PAGES}
COMMAND = re.compile(r"^    tubevit (\S.+)$", re.MULTILINE)
RUNS = {}  # the workdirs that were trained so far, by config: another page with the same command gets a copy


@pytest.fixture
def project(tiny_run, digits_cache, tmp_path, monkeypatch):
    """A folder with what the README's lines name, tiny."""
    shutil.copytree(tiny_run, tmp_path / "runs/quickstart")
    shutil.copytree(tiny_run, tmp_path / "runs/mine")
    shutil.copy(next((digits_cache / "videos/test").glob("*.mp4")), tmp_path / "clip.mp4")
    shutil.copy(next((digits_cache / "images/test").glob("*.png")), tmp_path / "digit.png")
    shutil.copy(tmp_path / "digit.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(project, capsys):
    code = re.search(r"```python\n(.+?)```", README, re.DOTALL).group(1)
    names = {}
    exec(code, names)
    motion, digit = capsys.readouterr().out.split()
    assert motion in names["model"].labels["motion"] and 0 <= int(digit) < 10
    assert names["tokens"].shape[1] == len(names["centres"]) and (project / "my_model").is_dir()


def run_commands(page, train_command):
    """Runs the page's lines `tubevit ...`; training is cut short. Returns their verbs."""
    commands = COMMAND.findall(page)
    for command in commands:
        arguments = shlex.split(command)
        flags = [flag for flag in arguments if flag.startswith("--")]
        if arguments[0] == "train" and arguments[2].startswith("finetune:"):
            assert flags == ["--config", "--workdir"]
            arguments += ["--config.train.steps=2", "--config.loader.threads=1", "--config.eval.every=2"]
            arguments += ["--config.mesh.data=1"]  # of the eight fake devices
            if arguments[2] in RUNS:
                shutil.copytree(RUNS[arguments[2]], arguments[4])
                continue
            RUNS[arguments[2]] = pathlib.Path(arguments[4]).absolute()
        elif arguments[0] == "train" and arguments[2].startswith("bootstrap:"):
            assert flags == ["--config", "--workdir"]
            changes = {
                "mesh.data": 1,
                "train.steps": 2,
                "loader.threads": 1,
                "data.train.videos.batch_size": 4,
                "eval.views": "1x1",
            }
            arguments += [f"--config.{key}={value}" for key, value in changes.items()]
        elif arguments[0] == "train" and flags[-1].startswith("--config.train.elastic="):
            arguments = [*train_command("runs/elastic"), flags[-1], "--config.train.steps=1"]
        elif arguments[0] == "train":  # the same flags with the tiny experiment, whose run it resumes
            tiny = train_command("runs/mine")
            assert flags == ["--config", "--workdir", STEPS]
            assert load_config(arguments[2], {"train.steps": "1200"}).train.steps == 1200
            arguments = [*tiny, STEPS.replace("1200", "10")]
        assert main(arguments) == 0, command
    return {command.split()[0] for command in commands}


@pytest.fixture(scope="module")
def foreign(tiny, tmp_path_factory):
    """A folder with models of Hugging Face, small under their large names."""
    folder = tmp_path_factory.mktemp("foreign")
    vit = dict(tubes="1x8x8/32x8x8", frames=1, size=32, position="learned", class_token=True, pooling="cls")
    videomae = dict(position="index", pooling="mean", final_norm="pooled", pooled_norm_epsilon=1e-5)
    for name, model in {
        "vit-base-patch16-224": tiny(9, width=192, depth=8, num_heads=4, **vit),
        "videomae-base-finetuned-kinetics": tiny(8, tubes="4x8x8/4x8x8", **videomae),
    }.items():
        tubevit.save_model(model, folder / f"ours-{name}")
        assert main(["convert", str(folder / f"ours-{name}"), str(folder / name), "--format", "hugging-face"]) == 0
    return folder


@pytest.fixture
def clips(project, digits_cache, foreign, randomised):
    """clips.csv of the embedded clips, a tiny dense model, and models of Hugging Face, beside the runs."""
    shutil.copytree(foreign, project, dirs_exist_ok=True)
    heads = {"motion": Head(8, "video", tuple(sorted(DIRECTIONS)))}
    dense = model_config("vivit_nano8", heads=heads, depth=1, tubes="2x16x16/2x16x16", frames=32, size=32)
    tubevit.save_model(randomised(lambda: TubeViT(dense, rngs=nnx.Rngs(0))), project / "vivit")
    lines = (digits_cache / "motion.csv").read_text().splitlines()
    rows = [f"{digits_cache / line}".replace(",test", ",val") for line in lines[1:]]
    (project / "clips.csv").write_text("\n".join([lines[0], *rows]) + "\n")


def test_commands(clips, capsys, train_command):
    verbs = {"train", "evaluate", "predict", "inspect", "shard-videos", "convert", "export", "sparsify"}
    assert run_commands(README, train_command) == verbs
    assert "539 tokens" in capsys.readouterr().out


# Those of `buckets` name buckets: see test_buckets.py.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "buckets" and COMMAND.search(PAGES[page])])
def test_commands_of_the_pages(clips, train_command, page):
    assert run_commands(PAGES[page], train_command)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    folder = ROOT / "docs" if page in PAGES else ROOT
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[page]):
        assert (folder / link).is_file(), link


@pytest.mark.parametrize("page", [page for page in TEXTS if "```sh" in TEXTS[page]])
def test_commands_that_are_not_run_are_valid(page):
    """What stands between ```sh and ```: flags that exist, experiments that can be loaded."""
    blocks = "\n".join(re.findall(r"```sh\n(.+?)```", TEXTS[page], re.DOTALL))
    for line in re.findall(r"^tubevit (.+)$", blocks, re.MULTILINE):
        verb, *arguments = shlex.split(line, comments=True)
        args, rest = make_parser(verb).parse_known_args(arguments)
        overrides = dict(flag.removeprefix("--config.").split("=") for flag in rest)
        assert all(flag.startswith("--config.") for flag in rest), line
        if rest or (verb in ("train", "preflight") and not args.config.startswith(("finetune:", "my_experiment"))):
            spec = "quickstart" if args.config.startswith("finetune:") else args.config  # needs the files
            load_config(spec, overrides)


def test_verbs_are_those_of_the_table():
    table = README[README.index("| verb | does |") :].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\S+?)[ `]", table, re.MULTILINE)) == sorted(VERBS)


def test_tables_are_those_of_the_code():
    """`python docs/generate.py` was run after the last release, or change of an architecture."""
    generate = script("docs/generate.py")
    for path, make in generate.TABLES.items():
        text = (ROOT / path).read_text()
        assert generate.between_markers(text, make()) == text, path
        assert generate.BEGIN in text and generate.END in text


def test_architectures_are_those_of_the_table():
    rows = re.findall(
        r"^\| `(tubevit_\w+)` \| (\d+) \| (\d+) \| (\d+) \|.+?\| (\d+) \| ([\d.]+) M \|$", README, re.MULTILINE
    )
    assert {row[0] for row in rows} == {name for name in ARCHITECTURES if name.startswith("tubevit_")}
    plain = {f"vit_{size}{patch}" for size in ("ti", "s", "b", "l", "h") for patch in (14, 16, 32)}
    assert "`vit_{ti,s,b,l,h}{14,16,32}`, `vit_nano8` and `vit_ti8`" in README
    assert plain | {"vit_nano8", "vit_ti8"} == {name for name in ARCHITECTURES if name.startswith("vit_")}
    for field in re.findall(r"`(\w+)=(?:True|n)?`", README[README.index("takes any field") :]):
        assert field in model_config("vit_nano8").__dict__
    for name, *sizes, parameters in rows:
        config = model_config(name, num_classes=600)
        tokens = config.tubes.num_tokens((config.frames, config.size, config.size))
        assert list(map(int, sizes)) == [config.width, config.depth, config.num_heads, tokens]
        assert float(parameters) == round(count_parameters(config) / 1e6, 1)


def test_presets_are_those_of_the_table():
    for name in PRESETS:
        assert (
            f"`{name}`" in README
            or name in re.sub(r"`(table14_)1` ... `table14_7`", "table14_1 " * 7, README)
            or (name.startswith("table14_") and "`table14_1` ... `table14_7`" in README)
        )
    example = re.search(r'^`tubes="(.+?)"`', README, re.MULTILINE).group(1)
    assert tubevit.TubeSet.from_text(example).num_tokens((32, 224, 224)) == 98 + 196


def test_figure_is_what_the_script_draws(tmp_path):
    module = script("docs/figures/tubes.py")
    drawn = ROOT / "docs/figures/tubes.svg"
    module.__file__ = str(tmp_path / "tubes.py")
    module.main("paper")
    assert (tmp_path / "tubes.svg").read_text() == drawn.read_text()
    assert drawn.read_text().count("<use ") == 2 * 98 + 4 * 147 + 98 + 196


def test_quickstart_summary(tiny_run, tmp_path, monkeypatch, capsys):
    quickstart = script("launch/quickstart.py")
    shutil.copytree(tiny_run, tmp_path / "runs/quickstart")
    called = []

    def run(*command):
        called.append(command)
        if command[0].endswith("tubevit") and command[1] == "evaluate":
            assert main([*command[1:3], str(tmp_path / command[3]), *command[4:]]) == 0
        if "launch/time_controls.py" in command:
            script(command[1]).main(str(tmp_path / command[2]))
        return 1.0

    monkeypatch.setattr(quickstart, "run", run)
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--seed", "3", "--venv", "/x"])
    quickstart.main()
    out = capsys.readouterr().out
    assert ["make", "make-moving-digits", "train", "evaluate"] == [
        c[0] if c[0] == "make" else c[1] for c in called if "time_controls" not in c[1]
    ]
    assert called[0][-1] == "VENV=/x" and {command[0] for command in called[1:]} == {"/x/bin/tubevit", "/x/bin/python"}
    assert "quickstart:seed=3" in called[2] and called[3][-2:] == ("--split", "test")
    assert re.search(r"held-out motion, top-1, 8 files +\d+\.\d%", out)
    assert re.search(r"held-out digit, top-1, 4 files +\d+\.\d%", out)
    assert re.search(r"shuffled.+\d+\.\d%", out) and re.search(r"opposite motion predicted +\d+\.\d%", out)
    predict = shlex.split(re.search(r"predict: +\S+ (predict .+)", out).group(1))
    monkeypatch.chdir(tmp_path)
    assert main(predict) == 0
