import contextlib
import gzip
import itertools
import json
import math
import os
import pickle
import re
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import InputError
from brats_seg.scans.case import ScanFile
from brats_seg.scans.geometry import Geometry, ScanError, make_geometry, same_grid
from brats_seg.scans.volume import read_header, read_volume, read_volumes, write_label_map, write_volume

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for codes in itertools.product(*axes)
]
RAMP = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


def nifti(path, array=None, affine=None, **fields):
    """Write by nibabel, with header fields set."""
    array = RAMP.transpose(2, 1, 0) if array is None else array
    image = nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine)
    for key, value in fields.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def bare(path, *, shape=(5, 4, 3), body=b"", **fields):
    """A header that claims what it likes, and some bytes behind it."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 352
    for key, value in fields.items():
        header[key] = value
    raw = header.binaryblock + bytes(4) + body
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_reads_as_the_same_volume_in_the_same_place(tmp_path, suffix, orientation):
    path = tmp_path / f"x{suffix}"
    geometry = make_geometry(RAMP.shape, spacing_mm=(1, 2, 3), orientation=orientation)
    write_volume(path, RAMP, geometry, dtype="int16")
    array, read = read_volume(path)
    assert np.array_equal(array, RAMP)
    assert array.dtype == np.int16
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert read.axis_codes == tuple(orientation)
    assert read.shape == (3, 4, 5)
    assert read.spacing_mm == (1, 2, 3)
    assert same_grid(read, make_geometry(RAMP.shape, spacing_mm=(1, 2, 3)))
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(SimpleITK.ReadImage(path), "LPS")), RAMP
    )


def test_the_first_voxel_of_an_lps_file_is_right_front_bottom(tmp_path):
    array, _ = read_volume(nifti(tmp_path / "x.nii"))
    ras, _ = read_volume(nifti(tmp_path / "y.nii", affine=np.eye(4)))
    assert array[0, 0, 0] == 0
    assert array[0, 0, 1] == 1
    assert np.array_equal(ras, RAMP[:, ::-1, ::-1])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_an_oblique_affine_comes_back(tmp_path, suffix):
    angle = math.radians(20)
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine = turn @ np.diag([2.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = [10, -20, 30.5]
    geometry = make_geometry(RAMP.shape, affine=affine)
    write_volume(tmp_path / f"x{suffix}", RAMP, geometry, dtype="int16")
    array, read = read_volume(tmp_path / f"x{suffix}")
    assert np.array_equal(array, RAMP)
    assert np.allclose(read.affine, affine, atol=1e-5)
    assert read.axis_codes == ("R", "P", "S")


@pytest.mark.parametrize(
    "codes",
    [
        {"qform_code": 0, "sform_code": 2},
        {"qform_code": 3, "sform_code": 0},
        {"qform_code": 1, "sform_code": 4},
    ],
)
def test_a_label_map_goes_back_with_the_sources_codes_units_and_affine(tmp_path, codes):
    affine = np.array([[0, -2, 0, 7], [0, 0, 3, 8], [1, 0, 0, 9], [0, 0, 0, 1.0]])
    source = nifti(tmp_path / "source.nii.gz", affine=affine, xyzt_units=10, descrip=b"patient X", **codes)
    array, geometry = read_volume(source)
    write_label_map(tmp_path / "out.nii.gz", (array % 3).astype(np.uint8), geometry, dtype="uint8")
    a, b = nibabel.load(source), nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(a.affine, b.affine)
    assert np.array_equal(np.asarray(b.dataobj), np.asarray(a.dataobj) % 3)
    assert b.get_data_dtype() == np.uint8
    for key in ("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_z", "quatern_b", "qoffset_y"):
        assert np.array_equal(a.header[key], b.header[key])
    assert np.array_equal(a.header["pixdim"][:4], b.header["pixdim"][:4])
    assert bytes(b.header["descrip"]).strip(b"\0") == b""
    assert not b.header.extensions


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", RAMP, make_geometry(RAMP.shape), dtype="int16")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(("units", "scale"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_spacing_is_in_millimeters_whatever_the_file_says(tmp_path, units, scale):
    path = nifti(tmp_path / "x.nii", affine=np.diag([2.0, 3.0, 4.0, 1.0]), xyzt_units=units)
    assert np.allclose(read_header(path).spacing_mm, np.array([4, 3, 2]) * scale)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_number_types_of_both_byte_orders_keep_their_values(tmp_path, dtype, order):
    values = RAMP.transpose(2, 1, 0).astype(np.dtype(dtype).newbyteorder(order))
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(values.dtype)
    image = nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]), header=header)
    nibabel.save(image, tmp_path / "x.nii.gz")
    array, geometry = read_volume(tmp_path / "x.nii.gz")
    assert np.array_equal(array, RAMP)
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert geometry.dtype == dtype


def test_a_form_code_that_there_is_not_means_no_such_transform_as_in_nibabel(tmp_path):
    path = nifti(tmp_path / "x.nii", affine=np.diag([2.0, 3.0, 4.0, 1.0]), qform_code=1, sform_code=2)
    raw = bytearray(path.read_bytes())
    raw[254:256] = struct.pack("<h", 768)  # sform_code
    raw[280:284] = struct.pack("<f", 9.0)  # and its first row
    path.write_bytes(raw)
    assert read_header(path).affine == (
        (2.0, 0.0, 0.0, 0.0),
        (0.0, 3.0, 0.0, 0.0),
        (0.0, 0.0, 4.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )


def test_a_handedness_of_0_means_1_as_the_standard_has_it(tmp_path):
    path = nifti(tmp_path / "x.nii", affine=np.diag([2.0, 3.0, 4.0, 1.0]), qform_code=1, sform_code=0)
    raw = bytearray(path.read_bytes())
    raw[76:80] = bytes(4)  # pixdim[0]
    path.write_bytes(raw)
    assert read_header(path).affine[2] == (0.0, 0.0, 4.0, 0.0)


def test_slope_and_intercept_scale_to_floats(tmp_path):
    # nibabel resets the slope when it saves, so it is set in the bytes: scl_slope at 112, scl_inter at 116
    path = nifti(tmp_path / "x.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", 0.5, -2.0)
    path.write_bytes(raw)
    array, _ = read_volume(path)
    assert array.dtype == np.float32
    assert np.array_equal(array, RAMP * 0.5 - 2)


def test_one_slice_is_a_volume(tmp_path):
    array, _ = read_volume(nifti(tmp_path / "x.nii", array=np.ones((5, 4, 1), np.int16)))
    assert array.shape == (1, 4, 5)
    assert read_header(bare(tmp_path / "y.nii", shape=(5, 4), body=bytes(40))).shape == (1, 4, 5)


def test_a_stack_is_read_by_channel_and_the_file_only_once(tmp_path):
    stack = np.stack([RAMP, RAMP * 2, RAMP * 3], axis=-1)
    write_volume(tmp_path / "x.nii.gz", stack, make_geometry(RAMP.shape, orientation="RAS"), dtype="int16")
    files = [ScanFile(tmp_path / "x.nii.gz", channel) for channel in (2, 0)]
    (third, _), (first, _) = read_volumes(files)
    assert np.array_equal(third, RAMP * 3)
    assert np.array_equal(first, RAMP)
    with pytest.raises(ScanError, match="stacks 3 volumes"):
        read_volume(tmp_path / "x.nii.gz")
    with pytest.raises(ScanError, match="no channel 3; expected a channel from 0 to 2"):
        read_volume(ScanFile(tmp_path / "x.nii.gz", 3))


def test_several_gzip_members_are_one_file(tmp_path):
    raw = nifti(tmp_path / "x.nii").read_bytes()
    (tmp_path / "y.nii.gz").write_bytes(
        gzip.compress(raw[:100]) + gzip.compress(raw[100:400]) + gzip.compress(raw[400:])
    )
    assert np.array_equal(read_volume(tmp_path / "y.nii.gz")[0], RAMP)


@pytest.mark.parametrize("keep", [10, 200, -1, -9])
def test_a_truncated_file_is_refused(tmp_path, keep):
    noise = np.random.default_rng(0).integers(0, 1000, (30, 20, 10)).astype(np.int16)
    for name in ("x.nii.gz", "x.nii", "x.mha"):
        path = tmp_path / name
        write_volume(path, noise, make_geometry(noise.shape), dtype="int16")
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ScanError, match=r"truncated|whole|not a NIfTI|not a MetaImage") as raised:
            read_volume(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_damage_that_only_the_checksum_tells_is_refused(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_volume(path, RAMP, make_geometry(RAMP.shape), dtype="int16")
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="damaged"):
        read_volume(path)


@pytest.mark.parametrize("damage", ["middle", "checksum", "end"])
@pytest.mark.parametrize("size", ["told", "untold"])
def test_a_damaged_metaimage_is_refused_and_not_read_as_noise(tmp_path, damage, size):
    path = tmp_path / "x.mha"
    noise = np.random.default_rng(0).integers(0, 1000, (30, 20, 10)).astype(np.int16)
    write_volume(path, noise, make_geometry(noise.shape), dtype="int16")
    raw = bytearray(path.read_bytes())
    if damage == "end":
        raw[-100:] = b"" if size == "untold" else bytes(100)
    else:
        raw[-2000 if damage == "middle" else -2] ^= 255
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", b"", raw) if size == "untold" else raw)
    with pytest.raises(ScanError, match="truncated or damaged"):
        read_volume(path)


@pytest.mark.parametrize("pack", [bytes, zlib.compress, gzip.compress])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_metaimage_of_either_byte_order_packed_or_not(tmp_path, pack, order):
    fields = {
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": order == ">",
        "CompressedData": pack is not bytes,
    }
    fields |= {
        "ElementSpacing": "1 1 1",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{key} = {value}\n" for key, value in fields.items())
    (tmp_path / "x.mha").write_bytes(head.encode() + pack(RAMP.astype(f"{order}i2").tobytes()))
    array, _ = read_volume(tmp_path / "x.mha")
    assert np.array_equal(array, RAMP)
    assert array.dtype == np.int16
    assert array.flags.writeable


PLAIN = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "TransformMatrix": "0 1 0 1 0 0 0 0 -1",
    "Offset": "1 2 3",
}
PLAIN |= {
    "ElementSpacing": "1 2 3",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def metaimage(path, fields):
    """A file with these lines in its header; those before `ElementDataFile` in the order given."""
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in fields).encode("latin1") + RAMP.tobytes())
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ElementSize": "3 4 5"},
        {"Comment": "ElementDataFile is not here", "Modality": "MET_MOD_MR"},
        {"ElementByteOrderMSB": "False"},
        {"HeaderSize": "0", "ElementNumberOfChannels": "1"},
        {"TransformMatrix": "0.6 0.8 0 -0.8 0.6 0 0 0 1"},
        {"ElementType": "MET_CHAR"},
    ],
)
def test_a_metaimage_lies_where_simpleitk_puts_it(tmp_path, changes):
    fields = PLAIN | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    array, geometry = read_volume(metaimage(tmp_path / "x.mha", fields.items()))
    image = SimpleITK.ReadImage(tmp_path / "x.mha")
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS")), array)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    assert np.allclose(geometry.affine, np.diag([-1, -1, 1, 1]) @ affine)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            [*list(PLAIN.items())[:-1], ("ElementDataFile", "/etc/passwd"), ("ElementDataFile", "LOCAL")],
            "has its voxels in another file",
        ),
        ([*list(PLAIN.items())[:-1], ("ElementDataFile", "other.raw")], "has its voxels in another file"),
        ([("Comment", "ElementDataFile = LOCAL"), *list(PLAIN.items())[:-1]], "is not a MetaImage file"),
        ([("NDims", "99999999"), *list(PLAIN.items())[2:]], "has 99999999 axes and 1 numbers per voxel"),
        ([("NDims", "9" * 5000), *list(PLAIN.items())[2:]], "axes and 1 numbers per voxel"),
        ([("CompressedData: True\nName", "x"), *PLAIN.items()], "is not a MetaImage file"),
        ([("HeaderSize", "12"), *PLAIN.items()], "not directly after its header"),
        ([("HeaderSize", "-1"), *PLAIN.items()], "not directly after its header"),
        ([("DimSize", "1 1 1"), *PLAIN.items()], "has DimSize twice"),
        ([("ElementNumberOfChannels", "3"), *PLAIN.items()], "3 axes and 3 numbers per voxel"),
        (
            [("BinaryData", "False"), *[item for item in PLAIN.items() if item[0] != "BinaryData"]],
            "stores its voxels as text",
        ),
        ([("CompressedData", "perhaps"), *PLAIN.items()], "is invalid: CompressedData = 'perhaps'"),
        (
            [("ElementByteOrderMSB", "True"), ("BinaryDataByteOrderMSB", "False"), *PLAIN.items()],
            "is invalid: ElementByteOrderMSB",
        ),
        (
            [item if item[0] != "DimSize" else ("DimSize", "5 4 3.5") for item in PLAIN.items()],
            "is invalid: DimSize",
        ),
        (
            [item if item[0] != "DimSize" else ("DimSize", "1e300 1e300 1e300") for item in PLAIN.items()],
            "the header claims",
        ),
        (
            [item if item[0] != "DimSize" else ("DimSize", "5 4 nan") for item in PLAIN.items()],
            "is invalid: DimSize",
        ),
        (
            [
                item if item[0] != "ElementSpacing" else ("ElementSpacing", "1 1e308 1")
                for item in PLAIN.items()
            ],
            "affine is not finite",
        ),
        (
            [item if item[0] != "Offset" else ("Offset", "1 2") for item in PLAIN.items()],
            "is invalid: Offset = '1 2'",
        ),
    ],
)
def test_a_metaimage_header_is_taken_by_its_word_or_refused(tmp_path, fields, said):
    (tmp_path / "other.raw").write_bytes(RAMP.tobytes())
    with pytest.raises(ScanError, match=re.escape(said)) as raised:
        read_volume(metaimage(tmp_path / "x.mha", fields))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 400


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_a_pipe_or_a_folder_is_not_read(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ScanError, match="cannot be read: not a regular file; expected a file"):
            read_volume(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii"])
@pytest.mark.parametrize("shape", [(10000, 10000, 10000), (1000, 1000, 1000), (300, 300, 300)])
def test_a_header_that_claims_more_than_the_file_holds_is_refused_unread(tmp_path, name, shape):
    with pytest.raises(ScanError, match="the header claims"):
        read_volume(bare(tmp_path / name, shape=shape, body=bytes(60)))


def test_a_metaimage_that_claims_more_than_it_holds_is_refused_unread(tmp_path):
    write_volume(tmp_path / "x.mha", RAMP, make_geometry(RAMP.shape), dtype="int16")
    raw = (tmp_path / "x.mha").read_bytes()
    (tmp_path / "x.mha").write_bytes(raw.replace(b"DimSize = 5 4 3", b"DimSize = 10000 10000 10000"))
    with pytest.raises(ScanError, match="the header claims 1,000,000,000,000 voxels"):
        read_volume(tmp_path / "x.mha")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.nii.gz", b"not a scan at all" * 50, "is not a gzip-compressed NIfTI file"),
        ("x.nii", b"not a scan at all" * 50, "is not a NIfTI file"),
        ("x.mha", b"not a scan at all" * 50, "is not a MetaImage file"),
        ("x.nii.gz", gzip.compress(b"not a scan at all" * 50, mtime=0), "is not a NIfTI file"),
        ("x.nii", gzip.compress(b"not a scan at all" * 50, mtime=0), "is not a plain NIfTI file"),
        ("x.nii.gz", b"", "is empty"),
        ("x.mha", b"", "is not a MetaImage file"),
        (
            "x.mha",
            b"NDims = 3\nElementDataFile = LOCAL\n",
            "expected NDims, DimSize, ElementType and ElementDataFile = LOCAL",
        ),
        (
            "x.mha",
            b"NDims = 3\nDimSize = 1 1 1\nElementType = MET_ODD\nElementDataFile = LOCAL\n",
            "is invalid",
        ),
        ("x.nrrd", b"NRRD", "expected one of .nii.gz, .nii, .mha"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=said):
        read_volume(tmp_path / name)


def test_an_absent_file_is_refused(tmp_path):
    for name in ("x.nii.gz", "x.nii", "x.mha"):
        with pytest.raises(ScanError, match="cannot be read: No such file"):
            read_header(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "shape"),
        ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "shape"),
        ({"dim": [1, 5, 1, 1, 1, 1, 1, 1]}, "shape"),
        ({"datatype": 128}, "stores voxels as"),
        ({"datatype": 999}, "is invalid"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "affine is not finite"),
        ({"srow_x": [0, 0, 0, 0]}, "maps voxels onto a plane"),
        ({"magic": b"ni1"}, "magic"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "is invalid"),
        ({"vox_offset": np.inf}, "is invalid"),
        ({"vox_offset": 1e30}, "the header claims"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, fields, said):
    with pytest.raises(ScanError, match=said):
        read_volume(bare(tmp_path / "x.nii", body=bytes(400), **fields))


@given(
    st.sampled_from([".nii", ".nii.gz", ".mha"]),
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_header_is_read_or_refused_and_nothing_else(tmp_path_factory, suffix, changes):
    path = tmp_path_factory.mktemp("damage") / f"x{suffix}"
    write_volume(path, RAMP, make_geometry(RAMP.shape), dtype="int16")
    raw = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    for position, value in changes:
        raw[position] = value
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    with contextlib.suppress(ScanError):
        array, geometry = read_volume(path)
        assert array.shape == geometry.shape


def test_a_geometry_goes_into_json_and_an_error_survives_another_process(tmp_path):
    tree = json.loads(json.dumps(read_header(nifti(tmp_path / "x.nii.gz")).to_dict()))
    assert (tree["shape"], tree["spacing_mm"], tree["nifti"]["sform_code"]) == ([3, 4, 5], [1, 1, 1], 2)
    assert json.loads(json.dumps(make_geometry((1, 2, 3)).to_dict()))["nifti"] is None
    error = pickle.loads(pickle.dumps(ScanError(tmp_path, "is odd", expected="even")))
    assert (str(error), error.what, error.expected) == (
        f"{tmp_path}: is odd; expected even",
        "is odd",
        "even",
    )


def test_what_cannot_be_written_leaves_no_file(tmp_path):
    geometry = make_geometry(RAMP.shape)
    with pytest.raises(InputError, match="do not fit in uint8"):
        write_label_map(tmp_path / "x.nii.gz", RAMP * 10, geometry, dtype="uint8")
    with pytest.raises(InputError, match=r"\(3, 4, 4\) .* expected the \(3, 4, 5\)"):
        write_label_map(tmp_path / "x.nii.gz", RAMP[..., :4], geometry, dtype="uint8")
    with pytest.raises(InputError, match="cannot be written as"):
        write_volume(tmp_path / "x.mha", np.stack([RAMP, RAMP], axis=-1), geometry, dtype="int16")
    with pytest.raises(InputError, match="expected one of"):
        write_label_map(tmp_path / "x.png", RAMP, geometry, dtype="int16")
    assert list(tmp_path.iterdir()) == []


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.25, 8, width=32)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    suffix=st.sampled_from([".nii.gz", ".nii", ".mha"]),
    seed=st.integers(0, 9),
)
def test_any_volume_comes_back(tmp_path_factory, shape, orientation, spacing, dtype, suffix, seed):
    path = tmp_path_factory.mktemp("volume") / f"x{suffix}"
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    geometry = make_geometry(shape, spacing_mm=spacing, orientation=orientation, dtype=dtype)
    write_volume(path, array, geometry, dtype=dtype)
    back, read = read_volume(path)
    assert np.array_equal(back, array)
    assert back.dtype == array.dtype
    assert same_grid(read, geometry)
    assert np.allclose(read.spacing_mm, spacing)
    write_volume(path, back, read, dtype=dtype)
    assert read_volume(path)[1] == read


def test_grids_differ_by_a_shift_a_flip_or_a_shape():
    def at(x: float, orientation: str = "LPS", shape: tuple[int, int, int] = (3, 4, 5)) -> Geometry:
        affine = np.asarray(make_geometry(shape, orientation=orientation).affine)
        affine[0, 3] += x
        return make_geometry(shape, affine=affine)

    assert same_grid(at(0), at(1e-5))
    assert same_grid(at(0), at(0, "RAS"))
    assert not same_grid(at(0), at(0.5))
    assert not same_grid(at(0), at(0, shape=(3, 4, 6)))


METER, MILLIMETER, MICRON = 1, 2, 3


@pytest.mark.parametrize(("units", "per_mm"), [(METER, 0.001), (MILLIMETER, 1.0), (MICRON, 1000.0)])
def test_grids_are_compared_in_millimeters_whatever_the_file_says(tmp_path, units, per_mm):
    def at(x_mm: float) -> Geometry:
        affine = np.diag([-per_mm, -per_mm, per_mm, 1.0])
        affine[0, 3] = x_mm * per_mm
        return read_header(nifti(tmp_path / "x.nii", affine=affine, xyzt_units=units))

    in_mm = make_geometry(RAMP.shape, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert np.allclose(at(0.5).lps_affine[:3, 3], [0.5, 0, 0])
    assert same_grid(at(0), in_mm)
    assert same_grid(at(0), at(0.0005))
    assert not same_grid(at(0), at(0.5))


def test_a_metaimage_of_a_file_in_meters_is_on_its_grid(tmp_path):
    _, geometry = read_volume(
        nifti(tmp_path / "x.nii", affine=np.diag([0.002, 0.003, 0.004, 1.0]), xyzt_units=METER)
    )
    write_volume(tmp_path / "x.mha", RAMP, geometry, dtype="int16")
    assert SimpleITK.ReadImage(tmp_path / "x.mha").GetSpacing() == pytest.approx((2, 3, 4))
    assert same_grid(read_header(tmp_path / "x.mha"), geometry)


def test_the_same_numbers_in_another_unit_are_another_grid(tmp_path):
    files = [nifti(tmp_path / f"{units}.nii", xyzt_units=units) for units in (METER, MILLIMETER)]
    assert not same_grid(*(read_header(file) for file in files))


def test_real_scans_read_as_nibabel_and_simpleitk_read_them(real_data):
    for path in sorted(real_data.glob("*/*/*.nii.gz"))[::9]:
        array, geometry = read_volume(path)
        assert np.array_equal(array, np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0))
        assert np.array_equal(array, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)))
        assert geometry.shape == (155, 240, 240)
        assert geometry.spacing_mm == (1, 1, 1)


def test_a_real_label_map_comes_back_from_its_native_grid(real_data, tmp_path):
    source = real_data / "BraTS2023-GLI/BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz"
    array, geometry = read_volume(source)
    write_label_map(tmp_path / "x.nii.gz", array, geometry, dtype=geometry.dtype)
    a, b = nibabel.load(source), nibabel.load(tmp_path / "x.nii.gz")
    assert np.array_equal(a.affine, b.affine)
    assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    assert a.get_data_dtype() == b.get_data_dtype() == np.float32
    assert SimpleITK.ReadImage(tmp_path / "x.nii.gz").GetOrigin() == SimpleITK.ReadImage(source).GetOrigin()
