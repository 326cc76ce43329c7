"""What a player shows is what is read: one table of files, read, counted and sought, beside FFmpeg's own filters."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest

from pv_vae_jax.data import video_reading
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import VideoEntry
from pv_vae_jax.data.prepare.encoding import ClipSettings, encode_clips
from pv_vae_jax.data.readers.image_files import image_size, read_image
from pv_vae_jax.data.sources import open_source
from pv_vae_jax.data.video_container import BrokenVideoError, EncodedVideo, probe
from pv_vae_jax.data.video_pixels import HLG, PQ, Converter, from_hdr
from pv_vae_jax.data.video_reading import count_frames, frame_times, iterate_at_rate, iterate_video, read_video
from tests.video_fixture import av, encode, encode_sound, waves

VARYING = np.cumsum(np.random.default_rng(0).integers(20, 47, 20))  # milliseconds, as browsers and phones record
VARYING -= VARYING[0]


def remux(source, target, keep, change=lambda packet: None, **container):
    """Copy the packets that `keep` accepts, each after `change`."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=container) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size and keep(packet):
                packet = change(packet) or packet
                packet.stream = stream
                new.mux(packet)


def trimmed(path):
    """Cut without encoding anew: the packets from the key frame on stay, and those before the cut are hidden."""
    whole = path.with_name("whole.mp4")
    encode(whole, waves(30), g=15, bf=0)

    def earlier(packet):
        packet.pts -= round(20 / 24 / packet.time_base)
        packet.dts -= round(20 / 24 / packet.time_base)

    remux(whole, path, lambda p: p.pts * p.time_base >= 14.5 / 24, earlier, avoid_negative_ts="disabled")


def opened(path):
    """Begins at a key frame whose group is open: what is shown before it refers to what was cut off."""
    encode(path.with_name("whole.mkv"), waves(30), **{"g": 10, "bf": 2, "x264-params": "open-gop=1:scenecut=0"})
    keys = []

    def keep(packet):
        keys.append(packet.is_keyframe)
        return sum(keys) > 1

    remux(path.with_name("whole.mkv"), path, keep)


def hidden(path):
    """VP8 with two packets that only others refer to."""
    encode(path.with_name("whole.webm"), waves(16), codec="libvpx", b="1M")
    numbers = iter(range(16))

    def hide(old):
        data = bytearray(bytes(old))
        data[0] &= 0xFF if next(numbers) not in (5, 9) else ~0x10 & 0xFF
        new = av.Packet(bytes(data))
        new.pts, new.dts, new.time_base, new.is_keyframe = old.pts, old.dts, old.time_base, old.is_keyframe
        return new

    remux(path.with_name("whole.webm"), path, lambda packet: True, hide)


def dropped(path):
    """AVI in which three frames were not recorded: empty packets hold their places."""
    encode(path.with_name("whole.avi"), waves(12), codec="mpeg4", bf=0)

    def later(packet):
        if packet.dts >= 6:
            packet.pts += 3
            packet.dts += 3

    remux(path.with_name("whole.avi"), path, lambda packet: True, later)


def turned(path, matrix, aspect=None):
    """A file whose track has a display matrix of 2 x 2."""
    encode(path, waves(8), aspect=aspect)
    (a, b), (c, d) = matrix
    data, one = bytearray(path.read_bytes()), 1 << 16
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def add_cover(path):
    """Put cover art, as taggers write it, in front of the tracks of an MP4 file whose index is at its end."""
    from PIL import Image

    def box(kind, content):
        return struct.pack(">I4s", 8 + len(content), kind) + content

    jpeg = io.BytesIO()
    Image.fromarray(waves(1, 80, 80)[0]).save(jpeg, "JPEG")
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + jpeg.getvalue()))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", cover)))
    data = path.read_bytes().replace(b"udta", b"free")
    at = data.index(b"moov") - 4
    index = data[at + 8 : at + int.from_bytes(data[at : at + 4], "big")]
    path.write_bytes(data[:at] + box(b"moov", tags + index) + data[at + 8 + len(index) :])


def with_cover(path):
    encode(path, waves(8))
    add_cover(path)


def with_preview(path):
    """A small stream in front of the film, which is marked as the one to show."""
    with av.open(str(path), "w") as file:
        preview, film = file.add_stream("mjpeg", rate=24), file.add_stream("libx264", rate=24)
        preview.disposition = 0
        film.disposition = av.stream.Disposition.default
        preview.height, preview.width, preview.pix_fmt = 16, 24, "yuvj420p"
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        for stream in (preview, film):
            for picture in waves(8, stream.height, stream.width):
                frame = av.VideoFrame.from_ndarray(picture).reformat(format=stream.pix_fmt)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())


def fields(path, codec="libx264", pixels="yuv420p", height=32, width=48, **options):
    """A bar that moves from field to field: every other line of a frame is a later moment."""

    def field(moment):
        picture = np.full((height, width, 3), 30, np.uint8)
        picture[:, 4 + moment : 14 + moment] = 220
        return picture

    odd = np.arange(height)[:, None, None] % 2
    video = np.stack([np.where(odd, field(2 * i + 1), field(2 * i)) for i in range(12)])
    encode(path, video, codec, rate=25, pixels=pixels, flags="+ilme+ildct", **options)


def mixed(path):
    """Progressive film, interlaced from its ninth frame on."""
    encode(path, waves(8), codec="mpeg2video", rate=25)
    whole = path.read_bytes()
    fields(path, codec="mpeg2video", g=5)
    path.write_bytes(whole + path.read_bytes())


def see_through(path, codec, pixels, **options):
    """A square in front of noise that cannot be seen."""
    video = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 4), np.uint8)
    video[..., 3] = 0
    video[:, 8:24, 8:24] = (200, 40, 40, 255)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=12, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        for picture in video:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)))
        file.mux(stream.encode())


WIDE = Fraction(16, 11)
CLOCK, MIRROR = ("transpose", "clock"), ("hflip", "")
EVEN = dict(bf=2, g=6)


class Case:
    """A file: how it is made, the frames, rate and size that it has, and the filters with which a player shows it."""

    def __init__(self, make, frames, fps=24.0, size=(32, 48), filters=(), times=None, stream=0):
        self.make, self.frames, self.fps, self.size, self.filters = make, frames, fps, size, filters
        self.times, self.stream = np.arange(frames) / fps if times is None else times, stream


SQUARE = [("scale", "70:32:flags=area")]
WOVEN = [("bwdif", "send_frame:deint=interlaced")]
TABLE = {
    "plain.mp4": Case(lambda p: encode(p, waves(20), **EVEN), 20),
    "fragments.mp4": Case(
        lambda p: encode(p, waves(20), **EVEN, container={"movflags": "frag_keyframe+empty_moov"}), 20
    ),
    "plain.avi": Case(lambda p: encode(p, waves(20), **EVEN), 20),
    "plain.mpg": Case(lambda p: encode(p, waves(20), codec="mpeg2video", rate=25, **EVEN), 20, 25.0),
    "browser.webm": Case(
        lambda p: encode(p, waves(20), codec="libvpx", rate=1000, times=VARYING), 20, None, times=VARYING / 1000
    ),
    "screen.mkv": Case(lambda p: encode(p, waves(20), rate=1000, times=VARYING), 20, None, times=VARYING / 1000),
    "phone.mp4": Case(lambda p: encode(p, waves(20), rate=1000, times=VARYING), 20, None, times=VARYING / 1000),
    "moving.gif": Case(lambda p: encode(p, waves(8), codec="gif", rate=10, pixels="rgb8"), 8, 10.0),
    "trimmed.mp4": Case(trimmed, 10),
    "open.mkv": Case(opened, 20),
    "hidden.webm": Case(hidden, 14, None, times=np.delete(np.arange(16), (5, 9)) / 24),
    "dropped.avi": Case(dropped, 12, times=np.append(np.arange(6), np.arange(9, 15)) / 24),
    "wide.mp4": Case(lambda p: encode(p, waves(8), aspect=WIDE), 8, size=(32, 70), filters=SQUARE),
    "wide.mkv": Case(lambda p: encode(p, waves(8), aspect=WIDE), 8, size=(32, 70), filters=SQUARE),
    "narrow.avi": Case(
        lambda p: encode(p, waves(8), aspect=Fraction(8, 9)), 8, size=(32, 43), filters=[("scale", "43:32:flags=area")]
    ),
    "upright and wide.mp4": Case(
        lambda p: turned(p, ((0, 1), (-1, 0)), WIDE), 8, size=(70, 32), filters=[*SQUARE, CLOCK]
    ),
    "90.mp4": Case(lambda p: turned(p, ((0, 1), (-1, 0))), 8, size=(48, 32), filters=[CLOCK]),
    "180.mp4": Case(lambda p: turned(p, ((-1, 0), (0, -1))), 8, filters=[MIRROR, ("vflip", "")]),
    "270.mp4": Case(lambda p: turned(p, ((0, -1), (1, 0))), 8, size=(48, 32), filters=[("transpose", "cclock")]),
    "mirrored.mp4": Case(lambda p: turned(p, ((-1, 0), (0, 1))), 8, filters=[MIRROR]),
    "upside down.mp4": Case(lambda p: turned(p, ((1, 0), (0, -1))), 8, filters=[("vflip", "")]),
    "mirrored 90.mp4": Case(
        lambda p: turned(p, ((0, 1), (1, 0))), 8, size=(48, 32), filters=[("transpose", "cclock_flip")]
    ),
    "mirrored 270.mp4": Case(
        lambda p: turned(p, ((0, -1), (-1, 0))), 8, size=(48, 32), filters=[("transpose", "clock_flip")]
    ),
    "cover.mp4": Case(with_cover, 8, stream=1),
    "preview.mkv": Case(with_preview, 8, stream=1),
    "fields.mp4": Case(lambda p: fields(p, g=5, **{"x264-params": "tff=1"}), 12, 25.0, filters=WOVEN),
    "fields.mkv": Case(lambda p: fields(p, g=5, bf=0, **{"x264-params": "tff=1"}), 12, 25.0, filters=WOVEN),
    "fields.mpg": Case(lambda p: fields(p, codec="mpeg2video", g=5), 12, 25.0, filters=WOVEN),
    "dvd.mpg": Case(
        lambda p: fields(p, codec="mpeg2video", g=5, bf=2, aspect=Fraction(8, 9)),
        12,
        25.0,
        (32, 43),
        [*WOVEN, ("scale", "43:32:flags=area")],
    ),
    "mixed.mpg": Case(mixed, 20, 25.0, filters=WOVEN),
    "fields of mpeg4.mkv": Case(lambda p: fields(p, codec="mpeg4", g=5), 12, 25.0, filters=WOVEN),
}


def played(path, case):
    """The frames of a file as `(t, h, w, 3)` uint8, as FFmpeg's own filters show them."""
    with av.open(str(path)) as file:
        frames = list(file.decode(file.streams[case.stream]))
    graph, shown = av.filter.Graph(), []
    nodes = [graph.add(*each) for each in (*case.filters, ("format", "rgb24"), ("buffersink", ""))]
    graph.link_nodes(graph.add_buffer(template=frames[0]), *nodes).configure()
    for frame in (*frames, None):
        graph.vpush(frame)
        try:
            while True:
                shown.append(graph.vpull().to_ndarray())
        except (BlockingIOError, EOFError):
            pass
    return np.stack(shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    for name, case in TABLE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        case.make(folder / name)
    for left in folder.glob("whole.*"):
        left.unlink()
    return folder


@pytest.mark.parametrize("name", TABLE)
def test_every_way_of_reading_gives_what_a_player_shows(folder, name, monkeypatch):
    path, case = folder / name, TABLE[name]
    expected, whole, info = played(path, case), read_video(path), probe(path)
    assert whole.shape == expected.shape == (case.frames, *case.size, 3)
    assert np.abs(whole.astype(int) - expected).mean() < 1.5
    assert info.frames == count_frames(path) == case.frames and not info.sound
    times = frame_times(path)
    np.testing.assert_allclose(times, case.times, atol=1.1e-3)  # WebM and Matroska round to milliseconds
    assert info.fps == pytest.approx(
        case.fps or (case.frames - 1) / case.times[-1], rel=0.12 if case.fps is None else 1e-9
    )
    if name.endswith("mkv") or hasattr(av.video.codeccontext.VideoCodecContext, "coded_side_data"):
        assert (info.height, info.width) == case.size
    # Seeking, one at a time, in memory, smaller. Two headers say too little.
    exact = path.suffix in (".mp4", ".mkv", ".webm", ".gif") and not name.startswith(("fields of", "fragments"))
    seeks, decode = [], video_reading._decode

    def watched(file, *arguments, seek):
        seeks.append(seek or file is not path)
        return decode(file, *arguments, seek=seek)

    monkeypatch.setattr(video_reading, "_decode", watched)
    memory = EncodedVideo(name, path.read_bytes())
    for start in range(1, case.frames - 2, 2):
        for file in (path, memory):
            part = read_video(file, start=start, count=2, stride=2)
            np.testing.assert_array_equal(part, whole[start : start + 3 : 2], err_msg=f"from {start}")
    assert all(seeks) == exact, "files with times are not read from their start"
    np.testing.assert_array_equal(list(iterate_video(path, count=3)), whole[:3])
    np.testing.assert_array_equal(list(iterate_at_rate(path)), whole)
    assert read_video(path, short_side=16).shape[1:3] == FrameSize(16, 16).scaled(*case.size)
    # At another rate, the last frame that is shown by then.
    sampled = list(iterate_at_rate(path, fps=10))
    chosen = [int(np.searchsorted(times, k / 10 + 1e-6, "right")) - 1 for k in range(len(sampled))]
    np.testing.assert_array_equal(sampled, whole[chosen])
    assert len(sampled) / 10 == pytest.approx(times[-1] + 1 / info.fps, abs=0.11)


def test_training_and_prepare_take_every_frame_of_them(folder, capsys):
    """No window is promised that is not there, and nothing is skipped."""
    source = open_source(folder, frames=4, size=16, split="train", random=False, clips=None)
    test = open_source(folder, frames=4, size=16, split="test", random=False, clips=None)
    assert len(source) + len(test) == sum(case.frames // 4 for case in TABLE.values())
    for each in (source, test):
        for i in range(len(each)):
            each[i]
        assert not each.skipped and not each.replaced
    for name in ("browser.webm", "trimmed.mp4", "upright and wide.mp4", "fields.mp4"):
        clips = encode_clips(VideoEntry(folder / name, name), ClipSettings(short_side=16, min_frames=1))
        assert [length for _, length, _ in clips] == [TABLE[name].frames]
        size = probe_bytes(clips[0][0])
        assert size == tuple(side // 2 * 2 for side in FrameSize(16, 16).scaled(*TABLE[name].size))
    assert not capsys.readouterr().err.count("skipped")


def probe_bytes(data):
    return read_video(EncodedVideo("record", data), count=1).shape[1:3]


def test_a_song_with_a_cover_is_no_video(tmp_path):
    encode_sound(tmp_path / "song.mp4")
    add_cover(tmp_path / "song.mp4")
    with pytest.raises(BrokenVideoError, match="no video stream but an attached picture"):
        probe(tmp_path / "song.mp4")


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("a.mov", "qtrle", "argb", {}),
        ("a.mkv", "ffv1", "yuva420p", {}),
        ("vp9.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
        ("vp8.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    ],
)
def test_what_cannot_be_seen_is_black(tmp_path, name, codec, pixels, options):
    see_through(tmp_path / name, codec, pixels, **options)
    for video in (read_video(tmp_path / name), read_video(tmp_path / name, start=1, short_side=32)):
        assert np.abs(video[:, 11:21, 11:21].astype(int) - (200, 40, 40)).max() < 30, "the square"
        assert video[:, :6].max() < 12 and video[:, 26:].max() < 12 and video[:, :, 27:].max() < 12
    assert len(read_video(tmp_path / name)) == count_frames(tmp_path / name) == probe(tmp_path / name).frames == 4


def pq(light):
    """Signal of light over 10,000 cd/m2 (SMPTE ST 2084, equation 5.2)."""
    power = light**0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light):
    """Signal of light of the scene (ITU-R BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), a * np.log(np.maximum(12 * light - b, 1e-9)) + c)


@pytest.mark.parametrize("curve", [PQ, HLG])
def test_hdr_becomes_the_sdr_that_it_was_made_of(tmp_path, curve):
    """SDR below white in HDR, as broadcasters put it there (ITU-R BT.2408), comes back."""
    sdr = np.random.default_rng(0).uniform(0.05, 0.85, (4, 4, 3))
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    light = 203 * (sdr**2.4) @ to_2020.T  # cd/m2
    if curve == PQ:
        signal = pq(light / 10_000)
    else:
        luma = light @ (0.2627, 0.6780, 0.0593) / 1000
        signal = hlg(light / 1000 * luma[..., None] ** (1 / 1.2 - 1))
    found = from_hdr(np.rint(signal * 65535).astype(np.uint16), curve)
    np.testing.assert_allclose(found, 255 * sdr, atol=1.5)
    ramp = from_hdr(np.repeat(np.rint(np.linspace(0, 65535, 400)).astype(np.uint16)[:, None], 3, 1), curve).astype(int)
    assert (np.diff(ramp[:, 0]) >= 0).all() and ramp[0, 0] == 0 and 254 <= ramp[-1, 0] <= 255
    white = float(pq(203 / 10_000)) if curve == PQ else 0.75
    assert 240 <= from_hdr(np.full((1, 3), round(65535 * white), np.uint16), curve).min()
    # Through a file of 10 bits.
    with av.open(str(tmp_path / "hdr.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p10le"
        for name, value in (("color_trc", curve), ("color_primaries", 9), ("colorspace", 9), ("color_range", 1)):
            setattr(stream.codec_context, name, value)
        for _ in range(4):
            frame = av.VideoFrame(48, 32, "yuv420p10le")
            for plane, value in zip(frame.planes, (round((219 * white + 16) * 4), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    video = read_video(tmp_path / "hdr.mkv", short_side=16)
    assert video.shape == (4, 16, 24, 3) and 240 <= video.min() and np.ptp(video.astype(int)) <= 2
    # With a part that cannot be seen.
    rgba = np.full((32, 48, 4), round(255 * white), np.uint8)
    rgba[..., 3] = 255
    rgba[:8, :, 3] = 0
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    frame.color_trc = curve
    picture = Converter(None, "a frame")(frame)
    assert 240 <= picture[8:].min() and not picture[:8].any()


def test_pictures_are_upright_of_8_bits_and_on_black(tmp_path):
    from PIL import ExifTags, Image

    grey = np.linspace(0, 65535, 48).astype(np.uint16)[None].repeat(32, 0)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[..., 1], np.rint(grey / 257))
    rgba = np.random.default_rng(0).integers(0, 256, (32, 48, 4), np.uint8)
    rgba[..., 3] = 0
    rgba[8:24, 8:24] = (200, 40, 40, 255)
    rgba[8:24, 24:32] = (200, 40, 40, 128)
    image = Image.fromarray(rgba)
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    image.save(tmp_path / "lossless.webp", lossless=True, exact=True)
    Image.fromarray(rgba[..., :3]).quantize(8).save(tmp_path / "opaque.png")
    palette = Image.fromarray(np.where(rgba[..., 3] == 255, 1, 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([9, 250, 9, 200, 40, 40])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "la.png", "lossless.webp", "palette.png"):
        picture = read_image(tmp_path / name)
        assert not picture[:8].any() and not picture[:, 32:].any(), name
        if name != "la.png":
            assert (picture[8:24, 8:24] == (200, 40, 40)).all(), name
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png")[10, 26], (100, 20, 20), atol=1)
    assert read_image(tmp_path / "opaque.png").any(axis=-1).mean() > 0.9
    upright = waves(1)[0]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(upright).save(path, exif=exif)
        turned = upright.swapaxes(0, 1) if orientation > 4 else upright
        turned = turned[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
        np.testing.assert_array_equal(read_image(path), turned)
        assert image_size(path) == turned.shape[:2]
