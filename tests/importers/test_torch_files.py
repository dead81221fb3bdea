"""What PyTorch's files are told to hold before anything loads them; no torch needed."""

import collections
import os
import pickle
import zipfile

import pytest

from wetread.build.importers import ImportOptions, import_model
from wetread.build.importers.find import FORMATS
from wetread.build.importers.pickles import UNKNOWN, archive_globals, beyond_tensors, members, pickled_globals
from wetread.build.importers.torchscript import inspect_torchscript
from wetread.errors import GraphError


class Evil:
    """Pickles to a call that would leave a witness."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def named(path):
    return next((form.name for form in FORMATS if form.tells(path)), None)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_globals_are_listed_and_nothing_runs(tmp_path, protocol):
    witness = tmp_path / "witness"
    content = pickle.dumps({"a": collections.OrderedDict(x=1), "b": Evil(witness)}, protocol=protocol)
    found = pickled_globals(content, "f")
    assert any(name in ("posix.mkdir", "nt.mkdir") for name in found)
    assert "collections.OrderedDict" in found
    assert beyond_tensors(found) == sorted(found - {"collections.OrderedDict"})
    assert not witness.exists()


def test_names_that_are_put_together_are_unknown():
    # STACK_GLOBAL on values that are not two plain strings
    assert UNKNOWN in pickled_globals(b"\x80\x04\x8c\x02os\x8c\x05mkdir0N\x93.", "f")


def test_a_pickle_that_ends_early_is_refused():
    content = pickle.dumps(list(range(1000)))
    with pytest.raises(GraphError, match="no whole pickle"):
        pickled_globals(content[:50], "model.pth")


def archive(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(f"archive/{name}", content)
    return path


def test_formats_are_told_by_what_lies_in_them(tmp_path):
    script = archive(tmp_path / "a.pt", {"code/__torch__/net.py": "", "data.pkl": "", "constants.pkl": ""})
    program = archive(tmp_path / "b.zip", {"models/model.json": "{}", "archive_format": "pt2"})
    weights = archive(tmp_path / "c.pt", {"data.pkl": pickle.dumps({}), "data/0": ""})
    old = tmp_path / "d.pth"
    old.write_bytes(pickle.dumps({}))
    cut = tmp_path / "e.pt2"
    cut.write_bytes(b"PK\x03\x04")
    assert [named(path) for path in (script, program, weights, old, cut)] == [
        "TorchScript (.ts)", "PyTorch program (.pt2)", "PyTorch file (.pt)", "PyTorch file (.pt)",
        "PyTorch program (.pt2)",
    ]  # fmt: skip
    assert members(weights) == ("data.pkl", "data/0")


@pytest.mark.parametrize("name", ["net.pt2", "net.ts", "net.pt", "net.pth"])
def test_truncated_files_are_named(tmp_path, name):
    whole = archive(tmp_path / "whole.zip", {"data.pkl": b"x" * 5000, "models/model.json": b"{}" * 5000})
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(GraphError, match="no whole zip archive") as caught:
        import_model(path, ImportOptions(window=(8, 8, 8)))
    assert str(path) in str(caught.value)


def test_a_damaged_member_is_named(tmp_path):
    path = archive(tmp_path / "net.pt", {"data.pkl": b"x" * 5000})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(GraphError, match=r"archive/data\.pkl.*damaged"):
        import_model(path)


def test_weights_without_a_network(tmp_path):
    states = {"epoch": 3, "names": collections.OrderedDict()}
    path = archive(tmp_path / "weights.pth", {"data.pkl": pickle.dumps(states)})
    with pytest.raises(GraphError, match="weights without a network") as caught:
        import_model(path, ImportOptions(trust=True))
    for word in ("nnU-Net", "MONAI", ".pt2", "TorchScript", "ONNX"):
        assert word in caught.value.todo


def test_a_pickled_network_needs_trust(tmp_path):
    witness = tmp_path / "witness"
    path = archive(tmp_path / "net.pt", {"data.pkl": pickle.dumps(Evil(witness))})
    with pytest.raises(GraphError, match=r"imports (posix|nt)\.mkdir") as caught:
        import_model(path, ImportOptions(window=(8, 8, 8)))
    assert caught.value.code == "NEEDS_TRUST"
    assert "--trust" in caught.value.todo
    assert not witness.exists()
    assert list(archive_globals(path)) == ["archive/data.pkl"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def forward(self, x):\n  return torch.from_file('/tmp/x', True, 4)", "torch.from_file"),
        ("def forward(self, x):\n  return ops.mylib.launch(x)", "custom operator mylib::launch"),
        ("def __setstate__(self, state):\n  self.x = state", "runs as the file is loaded"),
        ("def forward(self, x):\n  return torch.classes.mine.Thing(x)", "torch.classes"),
        ("def forward(self x):", "cannot be parsed"),
    ],
)
def test_code_that_a_network_has_no_use_for(tmp_path, code, says):
    path = archive(tmp_path / "net.ts", {"code/__torch__/net.py": code})
    assert says in "; ".join(inspect_torchscript(path))
    with pytest.raises(GraphError, match="no use for") as caught:
        import_model(path, ImportOptions(window=(8, 8, 8)))
    assert caught.value.code == "NEEDS_TRUST"


def test_code_of_an_ordinary_network(tmp_path):
    code = "class Net(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return torch.add(ops.prim.data(x), x)"
    assert inspect_torchscript(archive(tmp_path / "net.ts", {"code/__torch__/net.py": code})) == ()
