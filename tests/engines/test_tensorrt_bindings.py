"""Every class, method, argument and name that the TensorRT backend uses, against NVIDIA's own Python bindings.

The bindings are on PyPI, the libraries that they link are not needed: a stub of them, whose functions return null,
lets the bindings be imported in a process of their own, where everything can be asked for but nothing made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheels import wheel
from wetread.engines.tensorrt import api

pytestmark = pytest.mark.peer

TENSORRT = ("10.13.*", "10.16.*", ">=11,<12")
CUDA = ("12.9.*", "13.*")

STUB = """
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL) NOTHING(createInferRefitter_INTERNAL) NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL) NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry) NOTHING(getPluginRegistry) NOTHING(getNvOnnxParserVersion)
NOTHING(initLibNvInferPlugins)
"""

DESCRIBE = r'''
import json, re, sys, types
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
from wetread.engines.tensorrt import api

def split(text):
    """Parameters of a signature; commas inside brackets belong to types and defaults."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]

def signatures(owner, name):
    """For each overload: names of its parameters, and of those without a default."""
    text = getattr(owner, name).__doc__ or ""
    found = []
    for one in re.findall(r"^(?:\d+\. )?" + name + r"\((.*)\) ->", text, re.MULTILINE):
        names = {part.split(":")[0]: " = " in part for part in split(one)}
        names.pop("self", None)
        found.append([sorted(names), sorted(key for key, default in names.items() if not default)])
    return found

calls = {
    f"{owner}.{name}": signatures(getattr(trt, owner), name)
    for owner, members in api.CLASSES.items() for name, arguments in members.items()
    if arguments is not None and hasattr(getattr(trt, owner, None), name)
}
flags = sorted(trt.BuilderFlag.__members__)
print(json.dumps({"missing": api.missing(trt), "calls": calls, "version": trt.__version__, "flags": flags}))
'''


def unpack(file: Path, target: Path) -> Path:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(target)
    return target


def described(version: str, tmp_path: Path) -> dict:
    if sys.platform != "linux":
        pytest.skip("the stub is made for Linux")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed for the stub of TensorRT's libraries")
    file = wheel("tensorrt-cu13-bindings", version)
    site = unpack(file, tmp_path / "site")
    major = file.name.split("-")[1].split(".")[0]
    (tmp_path / "stub.c").write_text(STUB)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        target = f"lib{name}.so.{major}"
        subprocess.run(
            [
                "gcc",
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{target}",
                "-o",
                libraries / target,
                tmp_path / "stub.c",
            ],
            check=True,
        )
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, str(site)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", TENSORRT)
def test_everything_used_is_in_the_bindings(version: str, tmp_path: Path) -> None:
    found = described(version, tmp_path)
    assert found["missing"] == []
    for owner, members in api.CLASSES.items():
        for name, arguments in members.items():
            if arguments is None or (owner, name) == ("ILogger", "__init__"):
                continue
            there = found["calls"][f"{owner}.{name}"]
            assert any(set(needed) <= set(arguments) <= set(known) for known, needed in there), (
                owner,
                name,
                arguments,
                there,
            )
    assert ("FP16" in found["flags"]) == found["version"].startswith("10.")  # this is not one module thrice


def test_a_name_that_is_gone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fires: what TensorRT 11 removed is missed in 11 and there in 10."""
    table = (
        "\\napi.ENUMS['BuilderFlag'] += ('INT8',); api.CLASSES['IBuilderConfig']['int8_calibrator'] = None\\n"
    )
    at = DESCRIBE.index("def signatures")
    monkeypatch.setitem(globals(), "DESCRIBE", DESCRIBE[:at] + table.replace("\\n", "\n") + DESCRIBE[at:])
    gone = described(TENSORRT[-1], tmp_path)["missing"]
    assert gone == ["IBuilderConfig.int8_calibrator", "BuilderFlag.INT8"]


@pytest.mark.parametrize("version", CUDA)
def test_cuda(version: str, tmp_path: Path) -> None:
    site = unpack(wheel("cuda-bindings", version), tmp_path / "site")
    unpack(wheel("cuda-pathfinder", "1.*"), site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from wetread.engines.tensorrt import api, cuda\n"
        "runtime = cuda.load()\n"
        "print(api.missing_cuda(runtime), runtime.cudaGetDeviceCount()[0].name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] cuda")
