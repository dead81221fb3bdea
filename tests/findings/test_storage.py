import os
import stat
import threading

import pytest

from wetread.errors import OutputError
from wetread.storage import whole_file, write_bytes


def test_file_appears_whole_with_the_usual_rights(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as partial:
        partial.write_bytes(b"12")
        assert partial.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"12"
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_error_keeps_the_older_file_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a") as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
    assert (tmp_path / "a").read_bytes() == b"old"


def test_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a could not be written") as caught:
        write_bytes(tmp_path / "a", b"x")
    assert caught.value.code == "OUTPUT_WRITE"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
def test_real_full_device(tmp_path):
    with pytest.raises(OutputError) as caught, whole_file(tmp_path / "a"), open("/dev/full", "wb", 0) as full:  # noqa: PTH123
        full.write(b"x")
    assert caught.value.code == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []


def test_threads_write_the_same_file(tmp_path):
    threads = [
        threading.Thread(target=write_bytes, args=(tmp_path / "a", bytes([i]) * 999)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = (tmp_path / "a").read_bytes()
    assert data == data[:1] * 999
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
