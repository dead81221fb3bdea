"""What is one volume and what is several, in one Series Instance UID."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.dicom import open_study


def several(maker, store, variants, **options):
    """A series in which every position occurs once for each variant of tags, interleaved."""
    datasets = []
    for v, tags in enumerate(variants):
        made = maker(first=1 + 100 * v, tags=tags, **options).datasets()
        for ds in made:
            ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") + np.int16(40 * v)).tobytes()
        datasets.append(made)
    interleaved = [made[k] for k in range(len(datasets[0])) for made in datasets]
    return open_study(store(interleaved))


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("echo", [{"EchoNumbers": 1, "EchoTime": "10"}, {"EchoNumbers": 2, "EchoTime": "20"}]),
        ("echo time", [{"EchoTime": "10"}, {"EchoTime": "20"}, {"EchoTime": "30"}]),
        (
            "image type",
            [{"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}],
        ),
        ("b-value", [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}]),
        ("temporal position", [{"TemporalPositionIdentifier": n} for n in (1, 2, 3)]),
        ("trigger time", [{"TriggerTime": "0"}, {"TriggerTime": "400"}]),
        ("acquisition", [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}]),
        ("kernel", [{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}]),
        ("inversion time", [{"InversionTime": "100"}, {"InversionTime": "2000"}]),
    ],
)
def test_volumes_at_the_same_positions_are_split(maker, store, name, variants):
    modality = "CT" if name == "kernel" else "MR"
    with several(maker, store, variants, modality=modality) as study:
        assert len(study.series) == len(variants)
        for v, series in enumerate(study.series):
            assert len(series) == 6
            assert name in series.split
            volume, _ = series.volume()
            uids = [ref.sop_instance_uid for ref in volume.grid.slices]
            assert uids == [f"1.2.3.1.{1 + 100 * v + k}" for k in range(6)]
        first, second = (study.series[k].volume()[0].voxels for k in (0, 1))
        np.testing.assert_allclose(second - first, 2.0, atol=1e-3)


def test_two_keys_split_twice(maker, store):
    variants = [
        {"EchoTime": str(te), "ImageType": ["ORIGINAL", "PRIMARY", kind]} for te in (5, 9) for kind in "MP"
    ]
    with several(maker, store, variants, modality="MR") as study:
        assert [len(series) for series in study.series] == [6] * 4
        assert all("echo time" in s.split and "image type" in s.split for s in study.series)


def test_b_values_with_directions(maker, store):
    variants = [{"DiffusionBValue": 0.0}] + [
        {"DiffusionBValue": 800.0, "DiffusionGradientOrientation": [float(d == a) for a in range(3)]}
        for d in range(3)
    ]
    with several(maker, store, variants, modality="MR") as study:
        assert [len(series) for series in study.series] == [6] * 4
        assert study.series[0].attributes["b_value"] == "0"


def test_private_b_value(maker, store):
    datasets = []
    for v, b in enumerate((0, 1000)):
        for ds in maker(modality="MR", first=1 + 100 * v).datasets():
            block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
            block.add_new(0x0C, "IS", str(b))
            datasets.append(ds)
    with open_study(store(datasets)) as study:
        assert [series.split for series in study.series] == ["b-value 0", "b-value 1000"]


def test_times_that_differ_for_every_slice_split_by_their_order(maker, store):
    datasets = []
    for v in range(2):
        for k, ds in enumerate(maker(modality="MR", first=1 + 100 * v).datasets()):
            ds.TriggerTime = str(10 * k + 500 * v)
            datasets.append(ds)
    with open_study(store(datasets)) as study:
        assert [len(series) for series in study.series] == [6, 6]
        for v, series in enumerate(study.series):
            numbers = {int(ref.sop_instance_uid.split(".")[-1]) // 100 for ref in series.grid()[0].slices}
            assert numbers == {v}


@pytest.mark.parametrize(
    "tags",
    [
        lambda k: {"AcquisitionNumber": k // 2},
        lambda k: {"TriggerTime": str(k)},
        lambda k: {"EchoTime": str(k % 2)},
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", *(["ADD"] if k < 3 else [])]},
        lambda k: {"ContentTime": f"1200{k:02d}"},
    ],
)
def test_keys_alone_do_not_split_one_volume(maker, only, tags):
    datasets = maker().datasets()
    for k, ds in enumerate(datasets):
        for keyword, value in tags(k).items():
            setattr(ds, keyword, value)
    series = only(datasets)
    assert series.split == "" and len(series) == 6


def test_localiser_is_split_off(maker, store):
    scout = maker(count=1, first=50, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).datasets()
    with open_study(store([*maker().datasets(), *scout])) as study:
        assert sorted(len(series) for series in study.series) == [1, 6]
        assert [series.is_localiser for series in study.series] == [False, True]


def test_orientations_and_frames_of_reference_are_split(maker, store):
    datasets = [
        *maker().datasets(),
        *maker(orientation=(1, 0, 0, 0, 0, -1), first=50).datasets(),
        *maker(first=80, tags={"FrameOfReferenceUID": "1.2.3.777"}).datasets(),
    ]
    with open_study(store(datasets)) as study:
        assert [len(series) for series in study.series] == [6, 6, 6]
        assert sorted(series.grid()[0].axis_codes for series in study.series) == ["PIL", "SPL", "SPL"]
        assert {series.grid()[0].frame_of_reference for series in study.series} == {"1.2.3.999", "1.2.3.777"}


def test_series_are_ordered_and_described(maker, store):
    datasets = [
        *maker(series=7, tags={"SeriesDescription": "thorax hélice"}).datasets(),
        *maker(series=3, modality="MR", tags={"SequenceName": "tse", "ScanningSequence": "SE"}).datasets(),
    ]
    for ds in datasets:
        ds.SpecificCharacterSet = "ISO_IR 100"
    with open_study(store(datasets)) as study:
        assert [series.uid for series in study.series] == ["1.2.3.3", "1.2.3.7"]
        assert study.series[1].attributes["description"] == "thorax hélice"
        assert study.series[0].attributes["sequence"] == "tse SE"
        assert study.series[1].attributes["modality"] == "CT"
        assert len(study.series[1].datasets) == 6
