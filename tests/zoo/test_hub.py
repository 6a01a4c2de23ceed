"""Models on the Hub, with its real client against a server at localhost; none of these tests needs a network."""

import dataclasses
import gc
import pathlib
import pickle
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save

import tubevit
from tests.zoo.hub_server import TOKEN
from tubevit.checkpoint.adapter import Base
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.manifest import is_complete, write_manifest
from tubevit.checkpoint.metadata import model_metadata
from tubevit.checkpoint.paths import flatten
from tubevit.convert import convert
from tubevit.convert.export import export_safetensors
from tubevit.convert.foreign import Options
from tubevit.errors import RunError, UserError
from tubevit.models.abstract import parameters
from tubevit.training import begin
from tubevit.transfer.initialise import read_donor
from tubevit.zoo import hub_repository, registry
from tubevit.zoo.hub import convert_hub
from tubevit.zoo.hub_client import clear_errors, connect
from tubevit.zoo.hub_name import HubName, parse_hub_name
from tubevit.zoo.names import named_config, open_checkpoint

REPO = "owner/model"
NAME = f"hf://{REPO}"


def same(model, other):
    ours, theirs = (flatten(parameters(each)) for each in (model, other))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize(
    "text, name",
    [
        ("hf://owner/model", HubName("owner/model")),
        ("hf://owner/model@v1.0", HubName("owner/model", "v1.0")),
        ("hf://o.w-n_r/Model.2@refs/pr/3:sub/folder", HubName("o.w-n_r/Model.2", "refs/pr/3", "sub/folder")),
        ("hf://owner/model:weights.npz", HubName("owner/model", None, "weights.npz")),
    ],
)
def test_names(text, name):
    assert parse_hub_name(text) == name and str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf://model", "hf://owner/model/folder", "hf://owner/model@", "hf://owner/model:", "hf://../model",
        "hf:owner/model", "hf://owner/model@../../x", "hf://owner/model:../x", "hf://owner/model:/etc",
        "hf://owner/model:a\\b", "hf://a/b@c@d", "hf://user:password@owner/model",
    ],
)  # fmt: skip
def test_malformed_names(text):
    with pytest.raises(UserError, match=r"is named hf://owner/repo\[@revision\]\[:subfolder\]"):
        parse_hub_name(text)


def test_ours_as_saved(hub, saved, model):
    hub.add_folder(REPO, saved)
    hub.repos[REPO][hub.branches[REPO]["main"]] |= {"README.md": b"a card", "optimizer.pt": pickle.dumps("no")}
    loaded = tubevit.load_model(NAME)
    same(model, loaded)
    assert loaded.config == model.config == named_config(NAME) == read_donor(NAME).config
    needed = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file() and path.stat().st_size}
    assert set(hub.got()) == needed  # of a file without content, the client asks for the length only
    hub.requests.clear()
    assert open_checkpoint(NAME).name == NAME
    assert hub.requests == [f"GET /api/models/{REPO}"]  # a branch is looked up again, and nothing else
    with pytest.raises(UserError, match=f"{NAME} is a model on the Hub, which has no steps; found step 3"):
        tubevit.load_model(NAME, step=3)


def test_revisions_and_folders(hub, saved, model, tiny, tmp_path):
    other = tiny(depth=1, seed=1)
    tubevit.save_model(other, tmp_path / "other")
    first = hub.add_folder(REPO, tmp_path / "other")
    hub.add_folder(REPO, saved, "models/b/")
    hub.add_folder(REPO, tmp_path / "other", "c/", branch="dev/x")
    same(model, tubevit.load_model(f"{NAME}:models/b"))
    same(other, tubevit.load_model(f"{NAME}@{first}"))
    same(other, tubevit.load_model(f"{NAME}@dev/x:c"))
    hub.requests.clear()
    same(other, tubevit.load_model(f"{NAME}@{first}"))
    assert hub.requests == []  # a commit never changes
    with pytest.raises(UserError, match="unknown revision of hf://owner/model 'dev/y'; did you mean 'dev/x'"):
        tubevit.load_model(f"{NAME}@dev/y")
    with pytest.raises(UserError, match=f"unknown revision of hf://owner/model '{'0' * 40}'; valid: "):
        tubevit.load_model(f"{NAME}@{'0' * 40}")
    with pytest.raises(UserError, match="unknown path in hf://owner/model 'models/a'; did you mean 'models/b'"):
        tubevit.load_model(f"{NAME}:models/a")
    with pytest.raises(UserError, match=f"{NAME} holds no checkpoint; expected an Orbax folder, or config.json with"):
        tubevit.load_model(NAME)


def test_ours_as_safetensors(hub, model, tmp_path):
    export_safetensors(model, tmp_path / "exported")
    hub.add_folder(REPO, tmp_path / "exported")
    loaded = tubevit.load_model(NAME)
    same(model, loaded)
    assert loaded.config == model.config
    arrays = {"tokenizer/x": np.zeros(3, np.float32)}
    hub.add(
        "owner/other",
        {"config.json": (tmp_path / "exported/config.json").read_bytes(), "model.safetensors": save(arrays)},
    )
    with pytest.raises(UserError, match="hf://owner/other: .* does not fit .*missing encoder.*unexpected tokenizer/x"):
        tubevit.load_model("hf://owner/other")


def test_those_of_others_are_converted_once(hub, foreign, vit, said, tmp_path):
    commit = hub.add_folder(REPO, foreign)
    same(vit, tubevit.load_model(NAME))
    assert sorted(set(hub.got())) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert any(f"converting {NAME}, commit {commit[:12]}" in line for line in said)
    source = open_checkpoint(NAME).metadata["source"]
    assert (source["hub"], source["revision"], source["licence"]) == (REPO, commit, "mit")
    hub.requests.clear()
    said.clear()
    same(vit, tubevit.load_model(NAME))
    assert hub.requests == [f"GET /api/models/{REPO}"] and said == []
    second = hub.add_folder(REPO, foreign)
    assert open_checkpoint(NAME).metadata["source"]["revision"] == second != commit
    assert convert_hub(NAME, tmp_path / "headless").config.heads == vit.config.heads
    assert Checkpoint(tmp_path / "headless").metadata["source"]["hub"] == REPO


def test_what_another_converter_made_is_converted_again(hub, foreign, said):
    """The folder of a conversion names the code that made it."""
    commit = hub.add_folder(REPO, foreign)
    folder = open_checkpoint(NAME).folder
    assert folder.name.startswith(f"{commit}-")
    folder.rename(folder.with_name(f"{commit}-{12 * '0'}"))
    said.clear()
    assert open_checkpoint(NAME).folder == folder and any("converting" in line for line in said)


def test_a_half_removed_conversion_is_made_again(hub, foreign, vit, monkeypatch):
    """As by a cleaner of old files; the address may end in a slash."""
    hub.add_folder(REPO, foreign)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    folder = open_checkpoint(NAME).folder
    (folder / "_CHECKPOINT_METADATA").unlink()
    same(vit, tubevit.load_model(NAME))


def test_a_configuration_that_names_no_model(hub):
    """As PyTorchModelHubMixin writes it."""
    weights = {"model.safetensors": save({"a": np.zeros(3, np.float32)})}
    hub.add(REPO, {"config.json": b'{"hidden_size": 24}', **weights})
    text = f"^{NAME}: {REPO} is neither a checkpoint nor a folder of another library, which has a config.json with"
    with pytest.raises(UserError, match=text):
        tubevit.load_model(NAME)


def test_a_file_of_several(hub, foreign, vit, tmp_path):
    tubevit.save_model(vit, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "a.safetensors", format="timm")
    weights = (tmp_path / "a.safetensors").read_bytes()
    hub.add(REPO, {"x/a.safetensors": weights, "x/b.npz": b"PK"})
    with pytest.raises(UserError, match=f"found several files: name one of them, such as {NAME}:x/a.safetensors"):
        open_checkpoint(f"{NAME}:x")
    file = f"{NAME}:x/a.safetensors"
    with pytest.raises(UserError, match=f"^{file}: owner/model/x/a.safetensors: no known vit has .*: pass --heads N$"):
        open_checkpoint(file)
    done = convert_hub(file, tmp_path / "converted", options=Options(heads=2, mean=vit.config.mean, std=vit.config.std))
    assert done.config.num_heads == 2 and hub.got() == ["x/a.safetensors"]
    same(vit, tubevit.load_model(tmp_path / "converted"))


def test_a_named_file_is_weights(hub, vit, tmp_path, monkeypatch):
    """Whatever its suffix is: the originals of scenic have none."""
    tubevit.save_model(vit, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "a.safetensors", format="timm")
    weights = (tmp_path / "a.safetensors").read_bytes()
    hub.add(REPO, {"x/checkpoint": weights})
    monkeypatch.setattr(hub_repository, "LARGEST_TEXT", 1000)
    options = Options(heads=2, mean=vit.config.mean, std=vit.config.std)
    assert convert_hub(f"{NAME}:x/checkpoint", tmp_path / "converted", options=options).config.num_heads == 2


def test_a_cut_connection_is_resumed(hub, foreign, vit, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250)  # what arrived of a chunk is lost: it has 10 MB
    hub.add_folder(REPO, foreign)
    hub.cuts["model.safetensors"] = [1000]
    same(vit, tubevit.load_model(NAME))
    assert [line.split(" ")[-1] for line in hub.requests if line.startswith("GET") and "model.saf" in line] == [
        f"/{REPO}/resolve/{hub.branches[REPO]['main']}/model.safetensors", "bytes=1000-",
    ]  # fmt: skip


def test_two_at_once(hub, foreign, said):
    """Each file is fetched once, and converted once."""
    hub.add_folder(REPO, foreign)
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: open_checkpoint(NAME).folder, range(2)))
    assert len(folders) == 1 and len(hub.got()) == len(set(hub.got()))
    assert sum("converting" in line for line in said) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_wrong_hash(hub, foreign, vit, file, tmp_path):
    hub.add_folder(REPO, foreign)
    content = bytearray((foreign / file).read_bytes())
    content[-2] ^= 1
    hub.served[file] = bytes(content)
    with pytest.raises(
        RunError, match=rf"^{NAME}: {file} arrived with the (sha256|git-sha1) \w+, the Hub lists \w+; it"
    ):
        tubevit.load_model(NAME)
    assert not any(path.read_bytes() == content for path in (tmp_path / "cache").rglob("*") if path.is_file())
    hub.served.clear()
    same(vit, tubevit.load_model(NAME))


def test_a_wrong_hash_after_an_interruption(hub, foreign, vit, monkeypatch):
    """What arrived before it is compared as well, by the next call."""
    hub.add_folder(REPO, foreign)
    content = bytearray((foreign / "model.safetensors").read_bytes())
    content[-2] ^= 1
    hub.served["model.safetensors"] = bytes(content)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HfApi, "verify_repo_checksums", lambda *args, **settings: exec("raise KeyboardInterrupt"))
        tubevit.load_model(NAME)
    with pytest.raises(RunError, match=f"^{NAME}: model.safetensors arrived with the sha256"):
        tubevit.load_model(NAME)
    hub.served.clear()
    same(vit, tubevit.load_model(NAME))


@pytest.mark.parametrize(
    "kind, text", [("gated", "is gated: accept its conditions at"), ("private", "has no such model, or")]
)
def test_repositories_with_limited_access(hub, saved, model, kind, text, monkeypatch, capfd):
    hub.add_folder(REPO, saved)
    getattr(hub, kind).add(REPO)
    with pytest.raises(UserError, match=f"^{NAME}.* {text}.*log in with `hf auth login`, or set HF_TOKEN$"):
        tubevit.load_model(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    with pytest.raises(UserError, match=text) as error:
        tubevit.load_model(NAME)
    assert "wrong" not in str(error.value) + "".join(capfd.readouterr())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    same(model, tubevit.load_model(NAME))
    assert TOKEN not in "".join(capfd.readouterr()) and hub.tokens[-1]


def test_a_repository_that_does_not_exist(hub, monkeypatch):
    with pytest.raises(UserError, match=f"hf://owner/none: {hub.url} has no such model"):
        tubevit.load_model("hf://owner/none")
    with pytest.raises(UserError, match="^hf://owner/no--ne: "):  # of no valid name
        tubevit.load_model("hf://owner/no--ne")
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//ada:lovelace@"))
    with pytest.raises(UserError, match=f"hf://owner/none: {hub.url} has no such model"):
        tubevit.load_model("hf://owner/none")


def test_offline(hub, saved, foreign, model, vit, monkeypatch, caplog):
    """The last commit of the branch is taken, and one line says so; without one, one line says that there is none."""
    hub.add_folder(REPO, saved)
    hub.add_folder("owner/vit", foreign)
    for name in (NAME, "hf://owner/vit"):
        tubevit.load_model(name)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{probe.getsockname()[1]}")  # nothing listens there
    caplog.clear()
    same(model, tubevit.load_model(NAME))
    (line,) = caplog.messages
    assert "Using cached commit hash for 'owner/model'" in line
    same(vit, tubevit.load_model("hf://owner/vit"))
    with pytest.raises(
        RunError, match=r"^hf://owner/none is not in the cache, and http://localhost:\d+ does not answer: "
    ):
        tubevit.load_model("hf://owner/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(model, tubevit.load_model(NAME))
    with pytest.raises(RunError, match="hf://owner/none is not in the cache.*offline mode is enabled"):
        tubevit.load_model("hf://owner/none")


def test_a_hub_that_fails(hub, saved):
    hub.add_folder(REPO, saved)
    hub.answer = lambda request: request.send_error(418)
    with pytest.raises(RunError, match=f"^{NAME}: {hub.url} answers with status 418; try again later$"):
        tubevit.load_model(NAME)


def test_addresses_of_a_transfer_are_shown_without_their_secrets(hub):
    api = connect()
    with pytest.raises(RunError) as error, clear_errors(parse_hub_name(NAME), api):
        raise ConnectionError("https://ada:lovelace@host/x?X-Amz-Credential=abc&X-Amz-Security-Token=def&a=1 failed")
    assert not any(secret in str(error.value) for secret in ("lovelace", "abc", "def")) and "a=1" in str(error.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub, which is not installed: pip install 'tubevit\[hub\]'"):
        tubevit.load_model(NAME)


def adapter(model, base: Base, folder) -> pathlib.Path:
    """Save those parameters of a model that are not of the base."""
    metadata = {"model": model_metadata(model.config), "adapter": dataclasses.asdict(base)}
    ocp.save_checkpointables(folder, {"params": base.without(parameters(model))}, custom_metadata=metadata)
    write_manifest(folder)
    return folder


def test_an_adapter_and_its_base(hub, saved, model, tmp_path):
    commit = hub.add_folder(REPO, saved)
    params = parameters(model)
    name = begin.base_of(NAME, params, model.config).name
    assert name == f"{NAME}@{commit}"  # as eval.json has it, too
    frozen = {"encoder": {"blocks": params["encoder"]["blocks"]}}
    hub.add_folder("owner/adapter", adapter(model, Base.of(name, None, params, frozen), tmp_path / "adapter"), "a/")
    hub.add(REPO, {})  # the branch goes on
    same(model, tubevit.load_model("hf://owner/adapter:a"))
    with pytest.raises(UserError, match="^hf://owner/adapter:a is a tubevit checkpoint: pass --format"):
        convert_hub("hf://owner/adapter:a", tmp_path / "x", open_checkpoint=open_checkpoint)


@pytest.mark.parametrize("base, text", [
    ("hf://owner/adapter", "is an adapter of hf://owner/adapter, which cannot be read: it leads to no checkpoint"),
    ("/home/ada/model", "is refused: it is an adapter of /home/ada/model; expected a model on the Hub or a release"),
])  # fmt: skip
def test_adapters_of_themselves_or_of_what_lies_here(hub, model, tmp_path, base, text):
    base = Base.of(base, None, parameters(model), {})
    hub.add_folder("owner/adapter", adapter(model, base, tmp_path / "adapter"))
    with pytest.raises(UserError, match=f"^hf://owner/adapter.*{text}"):
        tubevit.load_model("hf://owner/adapter")
    with pytest.raises(UserError, match=f"^hf://owner/adapter.*{text}"):
        convert_hub("hf://owner/adapter", tmp_path / "x", format="timm", open_checkpoint=open_checkpoint)


def test_arrays_that_are_none(hub, saved, tmp_path):
    """The manifest fits, but not the content: one line."""
    files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    for path, content in files.items():
        target = tmp_path / "saved" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x" * len(content) if "process_0/d/" in path else content)
    write_manifest(tmp_path / "saved")
    hub.add_folder(REPO, tmp_path / "saved")
    with pytest.raises(UserError, match=f"^{NAME} cannot be read as a model: ") as error:
        tubevit.load_model(NAME)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_reports_are_written_here(tmp_path):
    from tubevit.cli.report import _title_and_folder

    checkpoint = Checkpoint(tmp_path / "model" / "checkpoints" / "9")
    assert _title_and_folder(f"{NAME}:checkpoints/9", checkpoint) == ("9", "9_report")
    assert _title_and_folder("model", checkpoint) == ("model", str(tmp_path / "model" / "report"))


def test_a_damaged_cache(hub, saved, model, tmp_path, monkeypatch):
    """One that is a link to another folder, named relative to the current one."""
    hub.add_folder(REPO, saved)
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to("cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUBEVIT_CACHE", "link")
    folder = open_checkpoint(NAME).folder
    damaged = next(path for path in sorted(folder.rglob("d/*")) if path.stat().st_size).resolve()
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    text = f"^{NAME}: {REPO} is damaged: .*; delete {tmp_path}/link/hub/models--owner--model, and it is fetched"
    with pytest.raises(UserError, match=text):
        tubevit.load_model(NAME)
    # Orbax leaves failed tasks behind, which asyncio reports when they are collected. In the middle of `ast.parse`,
    # which formats the report as well, Python 3.11 raises a SystemError (a state of its parser is shared).
    gc.collect()


def test_a_release_on_the_hub(hub, saved, model, monkeypatch, tmp_path):
    """The index names a commit, and the hash of its manifest."""
    from tests.zoo.test_registry import NAME as RELEASE
    from tests.zoo.test_registry import entry

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    source = f"{NAME}@{hub.add_folder(REPO, saved)}"
    registry.write_index({RELEASE: entry((saved / "manifest.json").read_bytes(), source)})
    same(model, tubevit.load_model(RELEASE))
    assert is_complete(pathlib.Path(registry.find_release(RELEASE)))
    registry.write_index({RELEASE: entry(b"other", source)})
    with pytest.raises(RunError, match=f"{source} is not {RELEASE}: its manifest.json has the sha256 "):
        tubevit.load_model(RELEASE)
