"""Native decoders run apart: what they do to their process stays there."""

from __future__ import annotations

import io
import os
import signal
import time

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless

from wetread.dicom import decode_slice, decoders, open_study, read_header
from wetread.dicom.header import SliceHeader
from wetread.errors import PixelError, WetreadError


def compressed(maker):
    ds = maker().dataset(0, np.zeros(3))
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return SliceHeader(read_header(stream.getvalue()))


def test_children_are_used_again_and_ended(maker, store):
    datasets = maker().datasets()
    for ds in datasets:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
    with open_study(store(datasets)) as study:
        study.series[0].volume(threads=2)
    assert decoders._idle == []
    with decoders.decoders():
        first = decode_slice(compressed(maker)).values
        (child,) = decoders._idle
        second = decode_slice(compressed(maker)).values
        assert decoders._idle == [child] and child.process.poll() is None
    assert child.process.returncode == 0 and decoders._idle == []
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_dies_is_an_error_of_its_slice(maker, monkeypatch, how):
    ask = decoders._Child.ask

    def killed(self, request, data):
        os.kill(self.process.pid, how)
        self.process.wait()
        return ask(self, request, data)

    monkeypatch.setattr(decoders._Child, "ask", killed)
    with pytest.raises(PixelError) as caught:
        decode_slice(compressed(maker))
    assert caught.value.code == "PIXEL_DECODE"
    assert f"status {-how}" in caught.value.what
    assert "1.2.3.1.1" in caught.value.where and "(7fe0,0010)" in caught.value.where
    monkeypatch.undo()
    assert decode_slice(compressed(maker)).values.shape == (14, 12)


def test_a_decoder_that_hangs_is_stopped(maker, monkeypatch):
    monkeypatch.setattr(decoders, "TIME_LIMIT_S", 0.2)
    ask = decoders._Child.ask

    def stopped(self, request, data):
        os.kill(self.process.pid, signal.SIGSTOP)
        return ask(self, request, data)

    monkeypatch.setattr(decoders._Child, "ask", stopped)
    began = time.monotonic()
    with pytest.raises(PixelError) as caught:
        decode_slice(compressed(maker))
    assert caught.value.code == "PIXEL_DECODE" and time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["4.50", "4.51", "4.57", "4.70", "4.80", "4.90"])
def test_damaged_real_streams(real_case, kind):
    """Bytes of real streams are changed, also in ways that crash GDCM: values or a named error, nothing else."""
    (path,) = real_case("codecs").glob(f"*{kind}.dcm")
    raw = path.read_bytes()
    start = SliceHeader(read_header(raw)).instance.pixels.offset
    with decoders.decoders():
        for seed in range(6):
            rng = np.random.default_rng(seed)
            damaged = bytearray(raw)
            for at in rng.integers(start, start + 400 if seed % 2 else len(raw), 6):
                damaged[at] = rng.integers(256)
            try:
                decoded = decode_slice(SliceHeader(read_header(bytes(damaged))))
            except WetreadError as error:
                assert error.code and error.where
            else:
                assert decoded.values.shape == (512, 512)
