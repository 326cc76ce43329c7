"""A synthetic world of moving textured sprites with occlusion: seeded, exact, without files.

A clip is a pure function of (seed, index). Classes are families of motion, so that a conditional generator has
something temporal to learn:

* `bounce`: constant velocity, reflected at the walls;
* `orbit`: circles around a fixed centre, spinning;
* `fall`: gravity from rest, elastic floor. The future follows from the first frame alone;
* `swing`: a sine along a line, starting at one end.

Two more are used only if named (`families_of`):

* `walk`: a step of random size and direction in every frame, which cannot be predicted;
* `still`: nothing moves.

The world `plain` has the same motion and nothing else to look at: discs of one colour on grey, seen from so far that
they stay in the picture. What moves there can be tracked exactly.
"""

import dataclasses
import functools
from typing import Any, Self

import numpy as np

from pv_vae_jax.data.clips import LazyClip
from pv_vae_jax.data.frame_size import FrameSize

FAMILIES = ("bounce", "orbit", "fall", "swing")
MORE_FAMILIES = ("walk", "still")
SHAPES = ("disc", "square", "triangle")
WORLDS = ("synthetic", "plain")
ZOOM = 0.75  # of the plain world: whatever a sprite of the textured world does, it is then inside the picture
CONTRAST = 0.3  # least difference of a plain sprite from the grey ground, in every channel


@dataclasses.dataclass(frozen=True)
class Sprite:
    """One textured shape. Positions are in units of the frame's side, y downwards, sprite 0 at the back.

    Attributes:
      shape: one of `SHAPES`.
      radius: half of its size.
      position: `(t, 2)` centre as (y, x).
      angle: `(t,)` rotation in radians.
      colours: `(2, 3)` the two ends of its stripes in [0, 1].
      stripes: frequency, direction and phase of the texture, fixed to the sprite.
    """

    shape: str
    radius: float
    position: np.ndarray
    angle: np.ndarray
    colours: np.ndarray
    stripes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip before rendering: a background texture, sprites from back to front, and the class label."""

    background: np.ndarray  # (3, 5): per channel level, amplitude, y and x frequency, phase
    sprites: tuple[Sprite, ...]
    label: int

    def part(self, frames: slice) -> Self:
        """The scene in some of its frames."""
        sprites = (dataclasses.replace(s, position=s.position[frames], angle=s.angle[frames]) for s in self.sprites)
        return dataclasses.replace(self, sprites=tuple(sprites))


def sprites_of(source: str) -> int:
    """Sprites of a clip: one in the world `plain`, two otherwise."""
    return 1 if source.partition(":")[0] == "plain" else 2


def families_of(source: str) -> tuple[str, ...] | None:
    """Families of a world: `synthetic` has `FAMILIES`, `synthetic:fall,walk` those two, as have `plain` and
    `plain:fall,walk`. None for any other source.

    Raises:
      ValueError: a family is unknown or named twice.
    """
    world, colon, names = source.partition(":")
    if world not in WORLDS:
        return None
    families = tuple(names.split(",")) if colon else FAMILIES
    known = FAMILIES + MORE_FAMILIES
    if len(set(families)) < len(families) or not set(families) <= set(known):
        raise ValueError(f"{source}: the families of motion are {', '.join(known)}; name each once at most")
    return families


def simulate(
    seed: int, index: int, frames: int, label: int, sprites: int = 2, families: tuple[str, ...] = FAMILIES
) -> Scene:
    """Draw the scene of clip `index`: all sprites of one clip share the motion family `families[label]`."""
    rng = np.random.default_rng([seed, index])
    background = np.stack(
        [
            rng.uniform(0.25, 0.75, 3),
            rng.uniform(0.05, 0.2, 3),
            np.repeat(rng.uniform(-1.5, 1.5), 3),
            np.repeat(rng.uniform(-1.5, 1.5), 3),
            rng.uniform(0, 2 * np.pi, 3),
        ],
        axis=1,
    )
    return Scene(background, tuple(_sprite(rng, frames, families[label]) for _ in range(sprites)), label)


def plain(scene: Scene) -> Scene:
    """The same motion without texture, shape and spin: discs of one colour on grey, `ZOOM` of their size and way."""
    grey = np.array([[0.5, 0.0, 0.0, 0.0, 0.0]] * 3)

    def disc(sprite: Sprite) -> Sprite:
        away = sprite.colours[0] - 0.5
        colour = 0.5 + np.where(away < 0, -1, 1) * (CONTRAST + (0.5 - CONTRAST) * 2 * np.abs(away))
        place, still = 0.5 + ZOOM * (sprite.position - 0.5), np.zeros_like(sprite.angle)
        return Sprite("disc", ZOOM * sprite.radius, place, still, np.stack([colour, colour]), sprite.stripes)

    return Scene(grey, tuple(map(disc, scene.sprites)), scene.label)


def _sprite(rng: np.random.Generator, frames: int, family: str) -> Sprite:
    t = np.arange(frames)
    radius = rng.uniform(0.12, 0.2)
    angle = np.full(frames, rng.uniform(0, 2 * np.pi))
    if family == "bounce":
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.025, 0.06)
        velocity = speed * np.array([np.sin(heading), np.cos(heading)])
        position = reflect(rng.uniform(radius, 1 - radius, 2) + t[:, None] * velocity, radius)
    elif family == "orbit":
        reach = rng.uniform(0.15, 0.3)
        turn = rng.choice([-1, 1]) * rng.uniform(0.12, 0.3) * t + rng.uniform(0, 2 * np.pi)
        position = rng.uniform(0.4, 0.6, 2) + reach * np.stack([np.sin(turn), np.cos(turn)], axis=1)
        angle = angle + turn
    elif family == "fall":
        position = np.stack([drop(rng.uniform(0.15, 0.4), 1 - radius, t), np.full(frames, rng.uniform(0.15, 0.85))], 1)
    elif family == "walk":
        steps = rng.normal(0, 0.05, (frames, 2))
        position = reflect(rng.uniform(radius, 1 - radius, 2) + np.cumsum(steps, axis=0), radius)
    elif family == "still":
        position = np.broadcast_to(rng.uniform(radius, 1 - radius, 2), (frames, 2))
    else:
        along = rng.uniform(0, np.pi)
        reach = rng.uniform(0.2, 0.35) * np.cos(rng.uniform(0.2, 0.4) * t)
        position = rng.uniform(0.4, 0.6, 2) + reach[:, None] * np.array([np.sin(along), np.cos(along)])
    colours = rng.uniform(0, 1, (2, 3))
    stripes = np.array([rng.uniform(0.6, 1.4), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)])
    return Sprite(SHAPES[rng.integers(len(SHAPES))], radius, position, angle, colours, stripes)


def reflect(path: np.ndarray, radius: float) -> np.ndarray:
    """Fold a straight path into the box that the sprite's centre can reach."""
    room = 1 - 2 * radius
    folded = np.mod(path - radius, 2 * room)
    return radius + np.where(folded > room, 2 * room - folded, folded)


def drop(start: float, floor: float, t: np.ndarray, gravity: float = 0.008) -> np.ndarray:
    """Height of a body released at rest that bounces back to its start again and again."""
    down = np.sqrt(2 * (floor - start) / gravity)
    since = np.abs(np.mod(t + down, 2 * down) - down)
    return start + 0.5 * gravity * since**2


def state_width(source: str) -> int:
    """Numbers of a frame in `state`, for a world as `families_of` takes it; 0 for any other source."""
    families = families_of(source)
    return 4 * sprites_of(source) + len(families) if families else 0


def state(scene: Scene, classes: int) -> np.ndarray:
    """What happens, `(t, f)` float32: of each sprite its centre and velocity (y, x), in sides and sides a frame, then
    the class as one of `classes` numbers that is 1.

    Sprites come from dark to bright, which can be seen; which of them was drawn first cannot.
    """
    columns = []
    for sprite in sorted(scene.sprites, key=lambda sprite: float(sprite.colours.mean())):
        moves = len(sprite.position) > 1
        columns += [sprite.position, np.gradient(sprite.position, axis=0) if moves else 0 * sprite.position]
    frames = len(columns[0])
    return np.concatenate([*columns, np.tile(np.eye(classes)[scene.label], (frames, 1))], 1).astype(np.float32)


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw `(t, size, size, 3)` uint8: soft one-pixel edges, later sprites hide earlier ones."""
    axis = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(axis, axis, indexing="ij")
    level, amplitude, fy, fx, phase = scene.background.T
    wave = np.sin(2 * np.pi * (fy * y[..., None] + fx * x[..., None]) + phase)
    frames = len(scene.sprites[0].angle) if scene.sprites else 1
    video = np.broadcast_to(level + amplitude * wave, (frames, size, size, 3)).astype(np.float32)
    for sprite in scene.sprites:
        cover, paint = _paint(sprite, y, x, size)
        video = video + cover[..., None] * (paint - video)
    return np.clip(np.rint(video * 255), 0, 255).astype(np.uint8)


def outside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far places, in a sprite's own axes and units of its radius, are outside of its outline; below 0 inside."""
    if shape == "disc":
        return np.sqrt(u * u + v * v) - 1
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85
    return np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.55


def _paint(sprite: Sprite, y: np.ndarray, x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage `(t, h, w)` in [0, 1] and colour, `(t, h, w, 3)` or `(3,)`, of one sprite."""
    dy = (y - sprite.position[:, 0, None, None]).astype(np.float32)
    dx = (x - sprite.position[:, 1, None, None]).astype(np.float32)
    cos, sin = np.cos(sprite.angle)[:, None, None], np.sin(sprite.angle)[:, None, None]
    v, u = (cos * dy - sin * dx) / sprite.radius, (sin * dy + cos * dx) / sprite.radius
    cover = np.clip(0.5 - outside(sprite.shape, u, v) * sprite.radius * size, 0, 1).astype(np.float32)
    if np.array_equal(*sprite.colours):  # no stripes to see; half the time
        return cover, sprite.colours[0].astype(np.float32)
    frequency, direction, phase = sprite.stripes
    mix = 0.5 + 0.5 * np.sin(np.pi * frequency * (u * np.cos(direction) + v * np.sin(direction)) + phase)
    paint = sprite.colours[0] + mix[..., None] * (sprite.colours[1] - sprite.colours[0])
    return cover, paint.astype(np.float32)


@dataclasses.dataclass(eq=False)
class SyntheticVideos:
    """A source of `clips` synthetic clips.

    Labels alternate between the families, so every class has the same number of clips. Test clips come from another
    `seed`.

    Attributes:
      clips, frames: number of clips, and frames of each.
      size: side in pixels, or a `(height, width)` or `FrameSize`: the middle of a square world of the longer side.
      seed: seed of the world.
      sprites: sprites of a clip.
      families: motion families, the classes.
      cache_bytes: memory for rendered clips. Rendering a clip takes a millisecond, and an accelerator's step on a batch
        of small clips may take no longer.
      lazy: elements hold a `LazyClip`, of which the frames that are read are rendered and no others.
      features: elements hold the world's `state` as `features`.
      textured: False is the world `plain`.
      class_names: the families.
    """

    clips: int
    frames: int = 17
    size: int | tuple[int, int] | FrameSize = 32
    seed: int = 0
    sprites: int = 2
    families: tuple[str, ...] = FAMILIES
    cache_bytes: int = 0
    lazy: bool = False
    features: bool = False
    textured: bool = True

    def __post_init__(self):
        self.class_names = self.families
        self.size = FrameSize.of(self.size)
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.clips

    def scene(self, index: int) -> Scene:
        """The scene of clip `index`."""
        if not 0 <= index < self.clips:
            raise IndexError(index)
        label = int(index) % len(self.families)
        scene = simulate(self.seed, int(index), self.frames, label, self.sprites, self.families)
        return scene if self.textured else plain(scene)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"video": (t, H, W, 3) uint8 or a LazyClip, "label": int32}` of clip `index`, and its `features`."""
        element: dict[str, Any] = {"label": np.int32(index % len(self.class_names))}
        if self.features:
            element["features"] = state(self.scene(index), len(self.families))
        if self.lazy:
            return {"video": LazyClip(self.frames, None, functools.partial(self._render, index))} | element
        video = self._kept.get(index)
        if video is None:
            video = self._render(index)
            if len(self._kept) < self.cache_bytes // video.nbytes:
                video = np.ascontiguousarray(video)
                video.flags.writeable = False  # it is handed out again
                self._kept[index] = video
        return {"video": video} | element

    def _render(self, index: int, start: int = 0, count: int | None = None, stride: int = 1) -> np.ndarray:
        """Frames `start, start + stride, ...` of clip `index`, `count` of them or to the end, `(t, H, W, 3)` uint8."""
        size = dataclasses.replace(FrameSize.of(self.size), fit="crop")
        stop = None if count is None else start + count * stride
        return size.cut(render(self.scene(index).part(slice(start, stop, stride)), max(size.height, size.width)))

    def __reduce__(self) -> tuple:
        arguments = (getattr(self, field.name) for field in dataclasses.fields(self))
        return SyntheticVideos, tuple(arguments)  # a worker process renders anew
