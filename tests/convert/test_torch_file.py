"""torch's files, written here byte by byte: what is read of them, and that nothing in them is run."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tubevit.cli import main
from tubevit.convert.files import kind_of
from tubevit.convert.torch_file import read_torch
from tubevit.errors import UserError

KINDS = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "ByteStorage": np.uint8,
}  # fmt: skip


def text(value):
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def whole(*numbers):
    return b"(" + b"".join(f"I{number}\n".encode() for number in numbers) + b"t"


def tensor(key, kind, count, size, stride, offset=0):
    """Opcodes of a tensor over storage `key` of `count` values."""
    storage = b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + f"I{count}\nt".encode() + b"Q"
    rest = (
        f"I{offset}\n".encode() + whole(*size) + whole(*stride) + b"I00\n" + name("collections", "OrderedDict") + b")R"
    )
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


def state_dict(**tensors):
    return b"\x80\x02}(" + b"".join(text(key) + opcodes for key, opcodes in tensors.items()) + b"u."


def write(path, data, storages=(), byteorder="little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for key, values in dict(storages).items():
            archive.writestr(f"archive/data/{key}", np.asarray(values).tobytes())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(kind, tmp_path):
    values = np.arange(24).astype(KINDS[kind])
    data = state_dict(
        a=tensor("0", kind, 24, (2, 3, 4), (12, 4, 1)),
        b=tensor("0", kind, 24, (4, 3), (1, 4), 12),
        c=tensor("0", kind, 24, (), (), 5),
    )
    found = read_torch(write(tmp_path / "x.pth", data, {"0": values}))
    assert kind_of(tmp_path / "x.pth") == "torch"
    np.testing.assert_array_equal(found["a"], values.reshape(2, 3, 4))
    np.testing.assert_array_equal(found["b"], values[12:].reshape(3, 4).T)
    np.testing.assert_array_equal(found["c"], values[5])
    assert {array.dtype for array in found.values()} == {np.dtype(KINDS[kind])}


def test_the_state_dict_among_other_things(tmp_path):
    inner = state_dict(a=tensor("0", "FloatStorage", 2, (2,), (1,)))[2:-1]
    data = b"\x80\x02}(" + text("epoch") + b"I3\n" + text("model") + inner + b"u."
    assert list(read_torch(write(tmp_path / "x.pth", data, {"0": np.ones(2, np.float32)}))) == ["a"]


CODE = {
    "os": name("os", "system") + b"(" + text("touch {file}") + b"tR.",
    "posix": name("posix", "system") + b"(" + text("touch {file}") + b"tR.",
    "builtins": name("builtins", "exec") + b"(" + text("open('{file}', 'w')") + b"tR.",
    "getattr": name("builtins", "getattr") + b"(" + name("builtins", "object") + text("__subclasses__") + b"tR.",
    "inside torch": name("torch", "load") + b"(" + text("{file}") + b"tR.",
    "dotted": text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",  # STACK_GLOBAL
    "instance": b"(i" + name("subprocess", "Popen")[1:] + b".",
    "namespace": name("argparse", "Namespace") + b")R.",
}


@pytest.mark.parametrize("case", CODE)
def test_code_is_named_and_not_run(case, tmp_path, capsys):
    file = tmp_path / "was_run"
    code = CODE[case]
    if b"{file}" in code:  # the length of the text changes with it
        before, after = code.split(b"X", 1)
        length = int.from_bytes(after[:4], "little")
        command = after[4 : 4 + length].decode().format(file=file)
        code = before + text(command) + after[4 + length :]
    write(tmp_path / "x.pth", b"\x80\x04" + code)
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 2
    line = capsys.readouterr().err
    assert "which could run code: expected only tensors" in line and line.count("\n") == 1
    assert not file.exists() and not (tmp_path / "ours").exists()


def test_the_payload_would_run_elsewhere(tmp_path):
    """Without our unpickler the same bytes do make the file: the test above can fail."""
    file = tmp_path / "was_run"
    pickle.loads(b"\x80\x04" + name("os", "system") + b"(" + text(f"touch {file}") + b"tR.")
    assert file.exists()


def test_attributes_of_what_is_given_out_change_nothing(tmp_path):
    """BUILD sets attributes: of a function that lasted it would change the next file's."""
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    change = b"\x80\x02" + rebuild + b"(N}(" + text("__defaults__") + whole(1, 2, 3) + b"utb0"
    data = state_dict(a=tensor("0", "FloatStorage", 2, (2,), (1,)))
    changed = read_torch(write(tmp_path / "x.pth", change + data[2:], {"0": np.ones(2, np.float32)}))
    np.testing.assert_array_equal(changed["a"], np.ones(2))
    with pytest.raises(UserError, match="damaged"):
        read_torch(
            write(tmp_path / "y.pth", b"\x80\x02" + name("torch", "FloatStorage") + b"}(" + text("a") + b"I1\nub.")
        )


@pytest.mark.parametrize("size, stride, offset", [
    ((3, 3), (3, 1), 0), ((8,), (1,), 1), ((2,), (100,), 0), ((8,), (-1,), 7), ((4,), (1,), -4), ((-1,), (1,), 0),
    ((1 << 62, 4), (1, 1), 0),
])  # fmt: skip
def test_tensors_stay_within_their_storage(size, stride, offset, tmp_path):
    data = state_dict(a=tensor("0", "FloatStorage", 8, size, stride, offset))
    with pytest.raises(UserError, match="beyond its storage of 8 values"):
        read_torch(write(tmp_path / "x.pth", data, {"0": np.ones(8, np.float32)}))


@pytest.mark.parametrize("size, stride", [((1 << 13, 1 << 13), (0, 0)), ((10,), (0,)), ((5, 5), (1, 1))])
def test_tensors_do_not_repeat_values(size, stride, tmp_path):
    """Otherwise, a file of a few bytes would fill the memory once its tensors are copied."""
    data = state_dict(a=tensor("0", "FloatStorage", 9, size, stride))
    with pytest.raises(UserError, match="claims more values than the 9 of its storage"):
        read_torch(write(tmp_path / "x.pth", data, {"0": np.ones(9, np.float32)}))


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\xff", b"p99999999999999\n"])
def test_the_memo_is_no_larger_than_the_pickle(put, tmp_path):
    """Python's own unpickler would make a table of that many entries."""
    with pytest.raises(UserError, match="damaged or incomplete: the pickle of [0-9]+ bytes numbers an object [49]"):
        read_torch(write(tmp_path / "x.pth", b"\x80\x02}" + put + b"."))


def test_what_is_damaged(tmp_path):
    data = state_dict(a=tensor("0", "FloatStorage", 8, (8,), (1,)))
    ones = np.ones(8, np.float32)
    for storages, content in [({"0": ones[:5]}, data), ({}, data), ({"0": ones}, data[:40]), ({"0": ones}, b"")]:
        with pytest.raises(UserError, match="x.pth is damaged or incomplete: "):
            read_torch(write(tmp_path / "x.pth", content, storages))
    with pytest.raises(UserError, match="big-endian"):
        read_torch(write(tmp_path / "x.pth", data, {"0": ones}, "big"))
    for content in (b"\x80\x02I3\n.", b"\x80\x02}(" + text("a") + b"I3\nu."):
        with pytest.raises(UserError, match="must hold a state dict"):
            read_torch(write(tmp_path / "x.pth", content))
