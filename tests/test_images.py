"""Pixels against diffusers, PNG files that are whole or absent, and hostile files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from PIL import Image

from sd3par.errors import ConfigError, Sd3parError
from sd3par.images import ImageMetadata, check_writable, load_image, read_metadata, save_png, to_uint8, to_unit
from tests import tolerances
from tests.arrays import array
from tests.ranks import ROOT

GOLDEN = Path(__file__).parent / "golden" / "vae_pixels.npz"
METADATA = ImageMetadata(
    prompt="a red circle", negative_prompt="blurry, dull", seed=7, steps=28, guidance_scale=7.0, width=24, height=16,
    model="tiny", dtype="float32", dp=2, mp=1, sp=1, engine="eager", version="0.1",
)  # fmt: skip
PIXELS = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)


def refusal(call: Callable[..., Any], *args: Any) -> str:
    """Returns the text of the ConfigError that `call` raises; it is one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_metadata_is_read_without_paddle() -> None:
    code = "import sys; from sd3par.images import read_metadata; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Pixels


def test_pixels_are_diffusers() -> None:
    images, golden = paddle.to_tensor(array("pixels.images", (2, 3, 8, 16), 0.8)), np.load(GOLDEN)
    ours = to_uint8(images)
    assert (ours.shape, ours.dtype) == ((2, 8, 16, 3), np.uint8)
    np.testing.assert_array_equal(ours, golden["uint8"])
    np.testing.assert_array_equal(to_unit(images), golden["unit"])


def test_pixels_are_rounded_and_clamped() -> None:
    levels = paddle.to_tensor([-9.0, -1.0, 0.0, 0.0039, 0.0041, 1.0, 9.0])
    ours = to_uint8(levels.reshape([1, 1, 1, 7]).expand([1, 3, 1, 7]))
    assert ours[0, 0, :, 0].tolist() == [0, 0, 128, 128, 128, 255, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_pixels_are_no_picture(value: float) -> None:
    with pytest.raises(Sd3parError, match="not finite"):
        to_uint8(paddle.full([1, 3, 2, 2], value))


# Pictures that are read


def picture() -> Image.Image:
    levels = array("pixels.picture", (37, 53, 3)) * 60 + 128
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def test_loaded_picture_is_diffusers(tmp_path: Path) -> None:
    picture().save(tmp_path / "in.png")
    golden = np.load(GOLDEN)["loaded"]
    for source in (picture(), tmp_path / "in.png", str(tmp_path / "in.png")):
        ours = load_image(source, 16, 24)
        assert (ours.shape, ours.dtype) == ((1, 3, 16, 24), np.float32)
        assert np.abs(ours - golden).max() < tolerances.MODULE


def saved(picture: Image.Image, tmp_path: Path, name: str, **options: Any) -> np.ndarray:
    """Returns the levels [H, W, 3] that a file of `picture` is read as."""
    picture.save(tmp_path / name, **options)
    loaded = load_image(tmp_path / name, picture.height, picture.width)
    return np.rint((loaded[0].transpose(1, 2, 0) + 1) * 127.5).astype(int)


def test_exif_rotation(tmp_path: Path) -> None:
    two = Image.fromarray(np.array([[[255, 0, 0]] * 8, [[0, 0, 255]] * 8], np.uint8).repeat(4, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    levels = saved(two, tmp_path, "turned.png", exif=exif)
    assert levels[0, 0].tolist() == [0, 0, 255] and levels[-1, 0].tolist() == [255, 0, 0]


def test_transparent_is_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert saved(rgba, tmp_path, "rgba.png")[0, 0].tolist() == [255, 255, 255]
    half = Image.new("LA", (4, 4), (0, 128))
    assert saved(half, tmp_path, "la.png")[0, 0].tolist() == pytest.approx([127] * 3, abs=1)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert saved(palette, tmp_path, "p.png")[0, 0].tolist() == [200, 100, 50]
    assert saved(palette, tmp_path, "p_transparent.png", transparency=1)[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 4), 32896, np.uint16))  # 128 * 257
    assert grey.mode.startswith("I;16")
    assert saved(grey, tmp_path, "grey.png")[0, 0].tolist() == [128, 128, 128]
    assert saved(grey, tmp_path, "grey.tiff")[0, 0].tolist() == [128, 128, 128]


def test_cmyk_and_grey(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert saved(cmyk, tmp_path, "cmyk.tiff")[0, 0].tolist() == [0, 255, 255]
    assert saved(Image.new("L", (8, 8), 77), tmp_path, "grey.png")[0, 0].tolist() == [77] * 3
    assert saved(Image.new("1", (8, 8), 1), tmp_path, "bits.png")[0, 0].tolist() == [255] * 3


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    levels = saved(frames[0], tmp_path, "moving.gif", save_all=True, append_images=frames[1:])
    assert levels[0, 0].tolist() == [255, 0, 0]


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (1, 1)) -> bytes:
    """Returns a PNG file of `chunks` after its header."""
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pictures_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    for content in (b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", png(), png((b"IDAT", b"broken"), (b"IEND", b""))):
        path.write_bytes(content)
        assert "intact" in refusal(load_image, path, 16, 16)
    whole = io.BytesIO()
    picture().save(whole, format="PNG")
    path.write_bytes(whole.getvalue()[:-200])
    assert "intact" in refusal(load_image, path, 16, 16)
    picture().save(path, format="PPM")
    assert "intact" in refusal(load_image, path, 16, 16)
    for missing in (tmp_path, tmp_path / "none.png", "", "a\0b"):
        assert "existing" in refusal(load_image, missing, 16, 16)
    assert "floating point" in refusal(load_image, Image.new("F", (4, 4)), 16, 16)


@pytest.mark.parametrize("size", [(1 << 30, 1 << 30), (20000, 20000), (10000, 9000), (8193, 8192)])
def test_decompression_bombs_refused(tmp_path: Path, size: tuple[int, int], recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "in.png"
    path.write_bytes(png((b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""), size=size))
    reason = refusal(load_image, path, 16, 16)
    assert "at most 67108864 pixels" in reason or "Bomb" in reason
    assert not recwarn


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refusal(load_image, tmp_path / "pipe.png", 16, 16)
    refusal(read_metadata, tmp_path / "pipe.png")


# Files that are written


def test_saved_picture_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    check_writable(path, False)
    assert list(tmp_path.iterdir()) == []
    save_png(path, PIXELS, METADATA, False)
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]
    with Image.open(path) as written:
        np.testing.assert_array_equal(np.asarray(written), PIXELS)
    assert read_metadata(path) == dataclasses.asdict(METADATA)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    save_png(path, PIXELS, METADATA, False)
    before = path.read_bytes()
    for call in (lambda: check_writable(path, False), lambda: save_png(path, PIXELS + 1, None, False)):
        assert "--overwrite" in refusal(call)
    assert path.read_bytes() == before
    save_png(path, Image.fromarray(PIXELS + 1), None, True)
    assert path.read_bytes() != before and [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("links", [True, False])
def test_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    path = tmp_path / "out.png"
    image = Image.fromarray(PIXELS)

    def save(*args: Any, **options: Any) -> None:
        path.write_bytes(b"theirs")

    def no_links(*args: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(image, "save", save)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    assert "--overwrite" in refusal(save_png, path, image, None, False)
    assert path.read_bytes() == b"theirs" and len(list(tmp_path.iterdir())) == 1


def test_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    save_png(tmp_path / "out.png", PIXELS, METADATA, False)
    assert read_metadata(tmp_path / "out.png")["seed"] == 7 and len(list(tmp_path.iterdir())) == 1


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    image = Image.fromarray(PIXELS)

    def full(file: Any, **options: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image, "save", full)
    assert "No space left" in refusal(save_png, path, image, METADATA, True)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_places_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    odd = ("out.jpg", "out", "", "a\0.png", "x" * 300 + ".png")
    for name in ("none/out.png", "file/out.png", "folder.png", "pipe.png", *odd):
        refusal(check_writable, tmp_path / name, True)
    assert "exists" in refusal(check_writable, tmp_path / "dangling.png", False)

    def read_only(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", read_only)  # a read-only folder would not stop root
    assert "Permission denied" in refusal(check_writable, tmp_path / "out.png", False)


# Metadata


def test_parameters_are_a1111s(tmp_path: Path) -> None:
    save_png(tmp_path / "out.png", PIXELS, dataclasses.replace(METADATA, model="a, b"), False)
    with Image.open(tmp_path / "out.png") as written:
        lines = written.text["parameters"].split("\n")  # type: ignore[attr-defined]
    assert lines[:2] == ["a red circle", "Negative prompt: blurry, dull"]
    assert lines[2].startswith("Steps: 28, Sampler: Euler flow-match, CFG scale: 7.0, Seed: 7, Size: 24x16, Model: ")
    assert 'Model: "a, b", Version: sd3par 0.1' in lines[2]


def test_parameters_of_image_to_image(tmp_path: Path) -> None:
    made = dataclasses.replace(METADATA, image="start.png", strength=0.6)
    assert "Size: 24x16, Denoising strength: 0.6, Model: tiny" in made.to_parameters()
    assert "Denoising" not in METADATA.to_parameters()


@pytest.mark.parametrize(
    "prompt",
    [
        "red\nNegative prompt: nothing\nSteps: 1, Seed: 1, Size: 1x1",
        "red\u2028Steps: 1, Seed: 1\x85Negative prompt: nothing\r\vSteps: 2",
        "a\0b\ud800c \U0001f600 \u7ea2",
        "",
    ],
)
def test_prompts_cannot_add_fields(tmp_path: Path, prompt: str) -> None:
    metadata = dataclasses.replace(METADATA, prompt=prompt, negative_prompt=prompt)
    save_png(tmp_path / "out.png", PIXELS, metadata, False)
    assert read_metadata(tmp_path / "out.png") == dataclasses.asdict(metadata)
    with Image.open(tmp_path / "out.png") as written:
        text = written.text["parameters"]  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert "\0" not in text
    assert len(lines) == 3 and lines[1].startswith("Negative prompt: ") and lines[2].startswith("Steps: 28")


def text_chunk(content: bytes) -> tuple[bytes, bytes]:
    return b"tEXt", b"sd3par\0" + content


def test_metadata_is_found_behind_other_chunks(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    others = ((b"tEXt", b"sd3paradise\0{}"), (b"tEXt", b""), (b"IDAT", bytes(2 << 20)), (b"zTXt", b"sd3par\0\0x"))
    path.write_bytes(png(*others, text_chunk(b'{"seed": 1}'), text_chunk(b'{"seed": 2}'), (b"IEND", b"")))
    assert read_metadata(path) == {"seed": 1}


END = (b"IEND", b"")
HOSTILE = {
    "empty": (b"", "not PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(100), "not PNG"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "ends early"),
    "no chunk": (png(END), "no sd3par chunk"),
    "no end": (png((b"IDAT", bytes(100))), "ends early"),
    "size": (png(text_chunk(b"{}"), END, size=(1 << 30, 1 << 30)), "claims"),
    "no pixels": (png(text_chunk(b"{}"), END, size=(0, 5)), "claims"),
    "no header": (png()[:8] + png(text_chunk(b"{}"))[33:], "out of order"),
    "second header": (png((b"IHDR", bytes(13)), text_chunk(b"{}"), END), "out of order"),
    "short header": (png()[:8] + struct.pack(">I4sI", 0, b"IHDR", zlib.crc32(b"IHDR")), "header is broken"),
    "huge": (png(text_chunk(bytes(2 << 20)), END), "too large"),
    "length beyond the end": (png() + struct.pack(">I4s", 100, b"tEXt") + b"sd3par\0{}", "broken"),
    "length of 4 GB": (png() + struct.pack(">I4s", 0xFFFFFFFF, b"tEXt") + b"sd3par\0{}", "too large"),
    "checksum": (png(text_chunk(b"{}"))[:-1] + b"?", "broken"),
    "many chunks": (png(*[(b"tEXt", b"")] * ((1 << 16) + 1), END), "too many"),
    "list": (png(text_chunk(b"[1]"), END), "not a JSON object"),
    "not json": (png(text_chunk(b"{'a': 1}"), END), "not JSON"),
    "nan": (png(text_chunk(b'{"a": NaN}'), END), "not JSON"),
    "latin-1": (png(text_chunk(b'{"a": "\xe9"}'), END), "not JSON"),
    "deep": (png(text_chunk(b"[" * 500_000), END), "not JSON"),
    "long number": (png(text_chunk(b'{"a": ' + b"9" * 500_000 + b"}"), END), "not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    (tmp_path / "in.png").write_bytes(content)
    assert reason in refusal(read_metadata, tmp_path / "in.png")


def test_metadata_of_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png", "", "a\0b"):
        assert "existing" in refusal(read_metadata, path)


def test_random_damage_is_one_line(tmp_path: Path) -> None:
    whole = png((b"IDAT", bytes(64)), text_chunk(METADATA.to_json().encode()), END)
    random = np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole[: random.randint(1, len(whole) + 1)])
        damaged[random.randint(len(damaged))] = random.randint(256)
        (tmp_path / "in.png").write_bytes(damaged)
        try:
            values = read_metadata(tmp_path / "in.png")
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert values == json.loads(METADATA.to_json())
