import hashlib
import http.server
import json
import pathlib
import socket
import subprocess
import sys
import tarfile
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import tubevit
from tubevit.checkpoint.paths import flatten
from tubevit.errors import RunError, UserError
from tubevit.models.abstract import parameters
from tubevit.sharding.rules import put
from tubevit.transfer.initialise import read_donor
from tubevit.zoo import download, registry
from tubevit.zoo.archive import is_whole, pack, unpack
from tubevit.zoo.names import named_config, open_checkpoint
from tubevit.zoo.registry import Release, find_release, read_index, write_index

NAME = "tubevit_x@tag"


def entry(archive: bytes, urls=(), name=NAME, **fields) -> Release:
    values = dict(
        name=name, urls=urls, sha256=hashlib.sha256(archive).hexdigest(), bytes=len(archive), licence="CC-BY-4.0",
        data={"a": "moving_digits"}, input={"frames": 16, "fps": 8.0, "size": 64, "range": "uint8 0..255"},
        classes={"default": 5}, metrics=(), command=f"tubevit evaluate --checkpoint {name}", config="", commit=None,
    )  # fmt: skip
    return Release(**values | fields)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder with the name of the release, and its archive."""
    folder = tmp_path_factory.mktemp("saved") / NAME
    tubevit.save_model(model, folder)
    (folder / "README.md").write_text("a card")
    pack(folder, folder.parent / "a.tar")
    return folder, (folder.parent / "a.tar").read_bytes()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(folder of the released checkpoints, cache), both empty."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/index.json").write_text("[]")
    monkeypatch.setattr(registry, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "checkpoints", tmp_path / "cache"


class Server:
    """A file at http://localhost; each request takes the next of `answers`, the last one for ever.

    An answer is `whole`, `no ranges`, a status, or the number of bytes after which the connection is cut.
    """

    def __init__(self, content: bytes, answers=("whole",)):
        self.content, self.answers, self.ranges = content, list(answers), []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self.url = f"http://localhost:{self.http.server_port}/a.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        asked = request.headers["Range"]
        self.ranges.append(asked)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer in (404, 500):
            return request.send_error(answer)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and answer != "no ranges" else 0
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body if isinstance(answer, str) else body[:answer])
        request.close_connection = True


@pytest.fixture
def serve():
    """`serve(content, answers)`: a `Server`."""
    servers = []

    def start(*args):
        servers.append(Server(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def cached(cache, archive: bytes):
    return cache / "checkpoints" / f"{NAME}-{hashlib.sha256(archive).hexdigest()[:12]}" / NAME


def test_the_index_of_the_repository(tmp_path):
    """Each entry is what its folder holds: the archive of that has the hash and the size of the entry."""
    folder = registry.checkpoints_folder()
    releases = read_index()
    assert tubevit.list_models(pretrained=True) == sorted(releases)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(releases)
    for name, release in releases.items():
        assert (folder / name / "README.md").read_text().startswith(f"# {name}\n")
        if not release.urls:
            pack(folder / name, tmp_path / "a.tar")
            archive = (tmp_path / "a.tar").read_bytes()
            assert (len(archive), hashlib.sha256(archive).hexdigest()) == (release.bytes, release.sha256)


def test_round_trip_of_the_index(places):
    both = (
        entry(b"a", ["https://e.org/a", "http://e.net/a"]),
        entry(b"b", name="vit_b16@k400_2", licence="CC-BY ©"),
    )
    releases = {each.name: each for each in both}
    write_index(releases)
    assert read_index() == releases and list(read_index()) == sorted(releases)
    (row, _) = json.loads((places[0] / "index.json").read_text())
    assert set(row) == {
        "name", "urls", "sha256", "bytes", "licence", "data", "input", "classes", "metrics", "command", "config",
        "commit",
    }  # fmt: skip
    assert tubevit.list_models("tubevit_x*", pretrained=True) == [NAME]
    assert tubevit.list_models("tubevit_b16*") == ["tubevit_b16"]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"name": "no_tag"}, "is named ARCHITECTURE@TAG"),
        ({"name": "../x@tag"}, "found '../x@tag'"),
        ({"name": "a@b@c"}, "found 'a@b@c'"),
        ({"urls": "https://e.org"}, "urls must be a list"),
        ({"urls": ["file:///etc/passwd"]}, "begins with https:// or http://; found 'file:///etc/passwd'"),
        ({"sha256": "abc"}, "sha256 must be 64 hexadecimal digits"),
        ({"bytes": 0}, "bytes must be a whole number above 0; found 0"),
        ({"input": {"frames": 3}}, "input must have frames, fps, size, range"),
        ({"licenze": "x"}, "licenze"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_index(places, change, part):
    write_index({NAME: entry(b"a")})
    path = places[0] / "index.json"
    (row,) = json.loads(path.read_text())
    path.write_text("[{" if change is None else json.dumps([row | change]))
    with pytest.raises(UserError) as error:
        tubevit.list_models(pretrained=True)
    assert str(path) in str(error.value) and part in str(error.value)


def test_an_index_that_is_missing_or_names_one_twice(places):
    write_index({NAME: entry(b"a")})
    path = places[0] / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(UserError, match="lists a checkpoint twice"):
        read_index()
    path.unlink()
    with pytest.raises(UserError, match="index.json does not exist: the installation is incomplete"):
        read_index()


def test_unknown_names_give_the_closest(places):
    with pytest.raises(UserError, match="unknown released checkpoint 'tubevit_x@tga'; none is available"):
        tubevit.load_model("tubevit_x@tga")
    write_index({NAME: entry(b"a"), "tubevit_b16@k400": entry(b"b", name="tubevit_b16@k400")})
    with pytest.raises(UserError, match="unknown released checkpoint 'tubevit_x@tga'; did you mean 'tubevit_x@tag'"):
        tubevit.load_model("tubevit_x@tga")
    with pytest.raises(UserError, match="unknown checkpoint 'tubevit_x_tag'; did you mean 'tubevit_x@tag'"):
        tubevit.load_model("tubevit_x_tag")
    with pytest.raises(UserError, match="unknown model 'tubevit_x_tag'; did you mean 'tubevit_x@tag'"):
        named_config("tubevit_x_tag")
    with pytest.raises(UserError, match="without parameters; .* such as a workdir or tubevit_b16@k400"):
        tubevit.load_model("tubevit_b16")


def test_the_folder_beside_the_index_comes_first(places, saved, model):
    folder, archive = saved
    write_index({NAME: entry(archive, ["http://localhost:1/a.tar"])})
    (places[0] / NAME).symlink_to(folder)
    assert open_checkpoint(NAME).folder == places[0] / NAME and not places[1].exists()
    ours, theirs = flatten(parameters(model)), flatten(parameters(tubevit.load_model(NAME)))
    for path in ours | theirs:
        np.testing.assert_array_equal(ours[path], theirs[path])
    assert named_config(NAME) == model.config
    with pytest.raises(UserError, match="is a released model, which has no steps; found step 3"):
        tubevit.load_model(NAME, step=3)


def test_what_lies_under_that_name_here_comes_before(places, saved, tmp_path, monkeypatch):
    write_index({NAME: entry(saved[1])})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / NAME).symlink_to(saved[0])
    monkeypatch.chdir(tmp_path / "here")
    assert open_checkpoint(NAME).folder == tmp_path / "here" / NAME


def test_downloaded_once(places, saved, serve, model):
    archive = saved[1]
    server = serve(archive)
    write_index({NAME: entry(archive, [server.url])})
    folder = find_release(NAME)
    assert folder == cached(places[1], archive)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", NAME]
    assert not (folder / "README.md").exists() and server.ranges == [None]
    loaded = tubevit.load_model(NAME)
    assert loaded.config == model.config and server.ranges == [None]  # from the cache
    damaged = next(path for path in sorted(folder.rglob("d/*")) if path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{folder} is damaged: .*; delete it, and it is downloaded again"):
        tubevit.load_model(NAME)
    (folder / "manifest.json").unlink()  # as if it had been cut off
    assert find_release(NAME) == folder and is_whole(folder) and server.ranges == [None] * 2


def test_a_cut_connection_is_resumed(places, saved, serve):
    archive = saved[1]
    server = serve(archive, [1000, 5000, "whole"])
    write_index({NAME: entry(archive, [server.url])})
    assert is_whole(find_release(NAME))
    assert server.ranges == [None, "bytes=1000-", "bytes=6000-"]


def test_a_later_call_goes_on_and_so_does_a_mirror(places, saved, serve):
    archive = saved[1]
    broken = serve(archive, [3000, 500])
    write_index({NAME: entry(archive, [broken.url])})
    with pytest.raises(RunError, match="500 Internal Server Error"):
        find_release(NAME)
    mirror = serve(archive)
    write_index({NAME: entry(archive, [broken.url, mirror.url])})
    assert is_whole(find_release(NAME))
    assert broken.ranges == [None, "bytes=3000-", "bytes=3000-"] and mirror.ranges == ["bytes=3000-"]


def test_a_server_that_knows_no_ranges(places, saved, serve):
    server = serve(saved[1], [3000, "no ranges"])
    write_index({NAME: entry(saved[1], [server.url])})
    assert is_whole(find_release(NAME)) and len(server.ranges) == 2


def test_a_server_that_never_ends_is_left(places, saved, serve):
    """What it gives is short every time."""
    short, long = serve(saved[1][:-10]), serve(saved[1] + b"more")
    write_index({NAME: entry(saved[1], [short.url])})
    with pytest.raises(RunError, match=f"ends after {len(saved[1]) - 10} of {len(saved[1])} bytes"):
        find_release(NAME)
    write_index({NAME: entry(saved[1], [long.url])})
    with pytest.raises(RunError, match=f"expected {len(saved[1])} bytes, found more"):
        find_release(NAME)
    assert not list(cached(places[1], saved[1]).parent.glob("*.tar*"))


def test_a_wrong_content_is_refused_and_removed(places, saved, serve):
    archive = saved[1]
    wrong = bytearray(archive)
    wrong[len(wrong) // 2] ^= 1
    bad = serve(bytes(wrong))
    write_index({NAME: entry(archive, [bad.url])})
    with pytest.raises(RunError, match=f"{bad.url}: its sha256 is {hashlib.sha256(wrong).hexdigest()}, expected"):
        find_release(NAME)
    assert [path.name for path in cached(places[1], archive).parent.iterdir()] == [".lock"]
    good = serve(archive)
    write_index({NAME: entry(archive, [bad.url, good.url])})
    assert is_whole(find_release(NAME))
    assert good.ranges == [None]  # nothing of the wrong file is kept


def test_a_wrong_part_is_begun_again(places, saved, serve):
    """What an earlier call left may be of another file."""
    archive = saved[1]
    part = cached(places[1], archive).parent / f"{NAME}.tar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 700)
    server = serve(archive)
    write_index({NAME: entry(archive, [server.url])})
    assert is_whole(find_release(NAME)) and server.ranges == ["bytes=700-", None]


def test_offline_it_says_where_it_looked(places, saved):
    archive = saved[1]
    write_index({NAME: entry(archive, [f"http://localhost:{free_port()}/a.tar", "http://none.invalid/a.tar"])})
    with pytest.raises(RunError) as error:
        tubevit.load_model(NAME)
    folder, text = cached(places[1], archive), str(error.value)
    for part in (str(places[0] / NAME), str(folder), "refused", "http://none.invalid/a.tar: ", "is there a network?"):
        assert part in text
    (folder.parent / f"{NAME}.tar").write_bytes(archive)  # where it says
    assert str(folder.parent / f"{NAME}.tar") in text and find_release(NAME) == folder
    write_index({NAME: entry(b"other")})
    with pytest.raises(RunError, match="its entry names no URL"):
        find_release(NAME)


def test_silent_servers(places, saved, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        write_index({NAME: entry(saved[1], [f"http://localhost:{silent.getsockname()[1]}/a.tar"])})
        with pytest.raises(RunError, match="timed out"):
            find_release(NAME)


def test_processes_wait_for_each_other(places, saved, serve):
    archive = saved[1]
    server = serve(archive)
    write_index({NAME: entry(archive, [server.url])})
    program = (
        "import pathlib, sys; from tubevit.zoo import registry; "
        "registry.checkpoints_folder = lambda: pathlib.Path(sys.argv[1]); print(registry.find_release(sys.argv[2]))"
    )
    root = pathlib.Path(tubevit.__file__).parent.parent
    command = [sys.executable, "-c", program, str(places[0]), NAME]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [str(cached(places[1], archive))] * 3
    assert server.ranges == [None]


def test_an_archive_follows_from_the_content_alone(saved, tmp_path):
    folder, archive = saved
    copy = tmp_path / NAME
    for file in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        target.chmod(0o600)
    pack(copy, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == archive
    (tmp_path / "b").mkdir()
    unpack(tmp_path / "a.tar", tmp_path / "b" / NAME)
    names = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} - {pathlib.Path("README.md")}
    assert {p.relative_to(tmp_path / "b" / NAME) for p in (tmp_path / "b").rglob("*") if p.is_file()} == names
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path / "b"], check=True)  # by others as well


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 0
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"), member("/tmp/evil"), member(f"{NAME}/../../evil"), member(f"{NAME}/./evil"),
        member("other/x"), member(NAME), member(f"{NAME}//evil"),
        member(f"{NAME}/link", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"{NAME}/hard", tarfile.LNKTYPE, f"{NAME}/a"), member(f"{NAME}/fifo", tarfile.FIFOTYPE),
        member(f"{NAME}/folder", tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)  # fmt: skip
def test_archives_with_paths_outside_are_refused(tmp_path, bad):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member(f"{NAME}/a"))
        archive.addfile(bad)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="is refused: expected plain files in tubevit_x@tag/"):
        unpack(tmp_path / "a.tar", tmp_path / "in" / NAME)
    assert [path.name for path in tmp_path.rglob("*")] in (["a.tar", "in"], ["in", "a.tar"])
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="is not a tar archive"):
        unpack(tmp_path / "a.tar", tmp_path / "in" / NAME)


@pytest.fixture(scope="module")
def narrow(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow") / "narrow"
    tubevit.save_model(tubevit.load_model(saved[0], dtype="bfloat16"), folder)
    return folder


def test_bfloat16_on_disk_and_in_memory(saved, narrow, model):
    stored = flatten(ocp.load_checkpointables(narrow)["params"])
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype("bfloat16")}
    loaded = {dtype: tubevit.load_model(narrow, dtype=dtype) for dtype in ("float32", "bfloat16")}
    ours = flatten(parameters(model))
    donor = read_donor(str(narrow)).params
    for dtype, other in loaded.items():
        theirs = flatten(parameters(other))
        assert theirs.keys() == ours.keys() == donor.keys()
        for path, leaf in theirs.items():
            assert leaf.dtype == dtype and donor[path].dtype == np.float32
            rounded = np.asarray(ours[path]).astype(jnp.bfloat16)
            np.testing.assert_array_equal(np.asarray(leaf).astype(np.float32), rounded.astype(np.float32))
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    logits = {dtype: nnx.jit(other)(clip) for dtype, other in loaded.items()}
    assert logits["bfloat16"].dtype == np.float32
    np.testing.assert_allclose(logits["bfloat16"], logits["float32"], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="unknown dtype 'float16'; did you mean 'bfloat16'"):
        tubevit.load_model(narrow, dtype="float16")


def test_onto_any_mesh(narrow):
    from tubevit.config import default_config
    from tubevit.sharding.mesh import make_mesh

    settings = default_config().mesh
    settings.update(data=2, fsdp=2, tensor=2)
    model = tubevit.load_model(narrow)
    params = put(parameters(model), make_mesh(settings))
    assert any(len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in flatten(params).values())
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    graph = nnx.graphdef(model)
    there = nnx.jit(lambda params: nnx.merge(graph, params)(clip))(params)
    np.testing.assert_allclose(there, nnx.jit(model)(clip), rtol=1e-4, atol=1e-5)


def test_loading_needs_no_training_code(places, saved):
    write_index({NAME: entry(saved[1])})
    (places[0] / NAME).symlink_to(saved[0])
    program = (
        "import pathlib, sys; from tubevit.zoo import registry; "
        "registry.checkpoints_folder = lambda: pathlib.Path(sys.argv[1]); import tubevit; "
        "tubevit.load_model(sys.argv[2]); "
        "print([n for n in sys.modules if n.startswith(('tubevit.training', 'tubevit.cli'))])"
    )
    root = pathlib.Path(tubevit.__file__).parent.parent
    command = [sys.executable, "-c", program, str(places[0]), NAME]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip() == "[]"
