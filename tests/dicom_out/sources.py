"""Small CT sources, as headers without pixels, and readings of them."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from wetread.errors import Notice
from wetread.findings import LabelInfo, LesionRules, Provenance, Reading, extract_findings
from wetread.volume import Grid, SliceRef

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
NODULE = LabelInfo(
    1,
    "lung nodule",
    (220, 60, 40),
    ABNORMAL,
    ("427359005", "SCT", "Solitary nodule of lung"),
    ("39607008", "SCT", "Lung"),
)
MASS = LabelInfo(2, "mass", (40, 160, 60), ABNORMAL, ("4147007", "SCT", "Mass"))
LUNG = LabelInfo(
    3,
    "lung",
    (90, 120, 200),
    ("123037004", "SCT", "Anatomical Structure"),
    ("39607008", "SCT", "Lung"),
    lesion=False,
)
LABELS = (NODULE, MASS, LUNG)
MADE = Provenance(
    "lung-nodule",
    "1.2.3",
    "sha256:" + "5e" * 32,
    "reference",
    "float32",
    "cpu",
    "0.1.0",
    "2026-11-22T12:00:00Z",
    "Research only. Not a medical device. Not for clinical use.",
)
SHAPE = (9, 24, 32)
SPACING = (2.5, 0.7, 0.9)


def affine_of(oblique=False):
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
    if oblique:
        a, b = np.deg2rad((25, 10))
        turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        tilt = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
        axes = tilt @ turn @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * SPACING
    affine[:3, 3] = (-101.5, -87.25, 33.0)
    return affine


def text(values):
    return [f"{v:.10f}"[:16] for v in values]


def study(ds, sop_class):
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = sop_class
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.4"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "101500", "7", "A1"
    ds.PatientName, ds.PatientID = "Müller^Jörg", "ID-1"
    ds.PatientBirthDate, ds.PatientSex = "19500607", "M"
    ds.ReferringPhysicianName = ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "Maker", "Scanner"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.BodyPartExamined, ds.SeriesNumber, ds.PositionReferenceIndicator = "CHEST", 3, ""
    ds.Rows, ds.Columns = SHAPE[1:]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def single_frames(oblique=False):
    affine, headers = affine_of(oblique), []
    for i in range(SHAPE[0]):
        ds = study(Dataset(), CT)
        ds.SOPInstanceUID, ds.InstanceNumber = f"1.2.3.2.{i + 1}", SHAPE[0] - i
        ds.ImagePositionPatient = text(affine[:3, 3] + i * affine[:3, 0])
        ds.ImageOrientationPatient = text([*affine[:3, 2] / SPACING[2], *affine[:3, 1] / SPACING[1]])
        ds.PixelSpacing, ds.SliceThickness = text(SPACING[1:]), "2.5"
        headers.append(ds)
    return headers, tuple(SliceRef(h.SOPInstanceUID, 0, CT) for h in headers)


def item(**fields):
    ds = Dataset()
    for name, value in fields.items():
        setattr(ds, name, value)
    return Sequence([ds])


def multi_frame(oblique=False):
    """Frames stored from the top down, with one more (a scout) in front of them."""
    affine = affine_of(oblique)
    ds = study(Dataset(), ENHANCED_CT)
    ds.SOPInstanceUID, ds.InstanceNumber, ds.NumberOfFrames = "1.2.3.2.99", 1, SHAPE[0] + 1
    orientation = text([*affine[:3, 2] / SPACING[2], *affine[:3, 1] / SPACING[1]])
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=text(SPACING[1:]), SliceThickness="2.5")
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=orientation)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for place in [SHAPE[0] + 5, *reversed(range(SHAPE[0]))]:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=text(affine[:3, 3] + place * affine[:3, 0]))
        frame.FrameContentSequence = item(StackID="1")
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    refs = tuple(SliceRef(ds.SOPInstanceUID, SHAPE[0] + 1 - i, ENHANCED_CT) for i in range(SHAPE[0]))
    return [ds], refs


def label_mask(organ=True):
    mask = np.zeros(SHAPE, np.uint8)
    if organ:
        mask[2:8, 12:22, 2:20] = 3
    mask[1:4, 3:8, 20:27] = 1
    mask[3, 4, 24] = 0
    mask[5:7, 14:17, 5:9] = 1
    mask[8, 1, 30] = 2
    return mask


def reading_of(mask, refs, oblique=False, labels=LABELS, rules=None, **fields):
    grid = Grid(SHAPE, affine_of(oblique), "1.2.3.4", refs)
    rng = np.random.default_rng(3)
    image = rng.normal(-300, 50, SHAPE)
    probability = rng.random(SHAPE).astype(np.float32)
    findings, mask, components = extract_findings(
        mask, probability, image, grid, labels, rules=rules or LesionRules()
    )
    return Reading(
        mask,
        grid,
        findings,
        labels,
        MADE,
        (Notice("ODD", "slices were reversed – größtenteils"),),
        components=components,
        modality="CT",
        study_instance_uid="1.2.3.1",
        series_instance_uid="1.2.3.2",
        **fields,
    )
