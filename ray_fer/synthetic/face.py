"""Drawing one face, part by part, from the back of the picture to the front.

About 3 ms for a 64-pixel face on one core: fast enough to draw data while the tests run, at the price of a cartoon's
realism.
"""

import numpy as np
from numpy.typing import NDArray

from ray_fer.synthetic import geometry as g
from ray_fer.synthetic.action_units import AuVector
from ray_fer.synthetic.furrows import draw_furrows
from ray_fer.synthetic.geometry import Points, project
from ray_fer.synthetic.identity import Identity
from ray_fer.synthetic.nuisance import Nuisance, expose
from ray_fer.synthetic.painter import MID, Painter, arc, mix, rgb, smooth


def _background(p: Painter) -> None:
    """Everything behind the head: a sloped background, hair, neck, clothes and ears."""
    slope, colour = p.nuisance.background_slope, p.nuisance.background
    for row in range(4):
        top = row * p.side // 4
        p.draw.rectangle((0, top, p.side, top + p.side // 4), fill=rgb(colour, 1 + slope * (row / 1.5 - 1)))
    identity = p.identity
    if identity.hair_style in ("long", "parted"):
        drop = 2.6 if identity.hair_style == "long" else 0.5
        width = identity.face_width + 0.2
        half = np.array([(width, drop), (width + 0.05, 0), (0.85, -1.3)])
        back = np.vstack([half * (-1, 1), half[::-1]])
        p.polygon(smooth(back), mix(identity.hair, (0, 0, 0), 0.25))
    neck = np.array([(-0.6, 1.2), (-0.62, 2.2), (-1.9, 2.7), (1.9, 2.7), (0.62, 2.2), (0.6, 1.2)])
    p.polygon(neck, mix(identity.skin, (0, 0, 0), 0.28))
    p.polygon(np.array([(-2.2, 3.2), (-1.6, 2.35), (0, 2.55), (1.6, 2.35), (2.2, 3.2)]), identity.clothes)
    for sign in (-1, 1):
        ear = np.array([(0.95, -0.2), (1.16, -0.22), (1.18, 0.2), (1.05, 0.5), (0.92, 0.4)])
        ear[:, 0] += identity.face_width - 1.08
        p.polygon(smooth(ear * (sign, 1), closed=True), mix(identity.skin, (150, 40, 30), 0.12))


def _head(p: Painter) -> None:
    identity = p.identity
    angle = np.linspace(0, np.pi, 11)[1:-1]
    skull = np.column_stack([identity.face_width * np.cos(angle), -0.1 - 1.3 * np.sin(angle)])
    outline = np.vstack([p.points[g.JAW], skull])
    p.polygon(smooth(outline, closed=True, steps=2), identity.skin)
    for sign, au in ((-1, p.side_au[0]), (1, p.side_au[1])):
        # The cheek is lit from above, and rises with 6 and, with a broad smile, with 12.
        lift = 0.06 * au[6] + 0.05 * au[12]
        p.shadow((sign * 0.9, 0.95), (0.28, 0.6), -0.14)
        p.shadow((sign * 0.5, -0.12), (0.36, 0.16), -0.13)
        p.shadow((sign * 0.6, 0.6 - lift), (0.3, 0.2 + lift), 0.06 + 0.12 * max(au[6], 0.7 * au[12]))
        p.shadow((sign * 0.17, 0.42), (0.06, 0.28), -0.12)
    chin = p.points[8, 1]
    p.shadow((0.0, p.points[57, 1] + 0.12), (0.26, 0.06), -0.16 - 0.1 * p.au[17])
    p.shadow((0.0, chin - 0.2 - 0.06 * p.au[17]), (0.2, 0.12), 0.07 + 0.08 * p.au[17])
    if identity.beard > 0:
        beard = np.vstack([p.points[1:16] * (0.98, 1), [(0.72, 0.75), (0.3, 0.86), (-0.3, 0.86), (-0.72, 0.75)]])
        p.polygon(beard, mix(identity.skin, identity.hair, 0.75 * identity.beard))


def _nose(p: Painter) -> None:
    skin, base = p.identity.skin, p.points[g.NOSE_BASE]
    wide = 0.55 * p.au[38]
    for wing, sign in ((base[0], -1), (base[4], 1)):
        nostril = np.array([wing[0] * 0.55, base[2, 1] - 0.045 + (wing[1] - p.identity.nose_length - 0.06) * 0.8])
        size = np.array([(-0.07, 0.0), (0.0, -0.03), (0.07, 0.005), (0.0, 0.025)]) * (1 + wide)
        p.polygon(smooth(nostril + size, closed=True), mix(skin, (20, 5, 5), 0.72))
        side = np.array([wing + (-sign * 0.05, -0.13), wing + (sign * 0.01, -0.04), wing + (-sign * 0.03, 0.06)])
        p.furrow(side, 0.45)
    p.shadow((0.0, p.identity.nose_length - 0.05), (0.09, 0.1), 0.16)
    p.shadow((0.0, 0.25), (0.05, 0.22), 0.1)
    p.furrow(np.array([base[1], base[2] + (0, 0.02), base[3]]), 0.3)


def _eye(p: Painter, contour: Points, sign: int) -> None:
    """One eye: sclera, iris and pupil cut out by the lids, lash line, fold.

    Args:
        p: The canvas.
        contour: The landmarks of the eye, shape (6, 2).
        sign: -1 for the eye on the picture's left, 1 for the other.
    """
    identity = p.identity
    with p.within(smooth(contour, closed=True, steps=3), (236, 232, 228)) as (draw, corner):
        # The iris does not move with the lids: a raised lid bares white above it.
        x, y = project(np.array([[sign * 0.5, -0.018]]), p.pose, p.side)[0] - corner
        for radius, colour in ((0.118, identity.iris), (0.055, (12.0, 10.0, 10.0))):
            r = radius * p.unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=rgb(colour))
        r = 0.022 * p.unit
        draw.ellipse((x + r, y - 2.6 * r, x + 3 * r, y - 0.6 * r), fill=(245, 245, 245))

    dark = mix(identity.hair, (15, 10, 8), 0.75)
    upper = contour[[0, 1, 2, 3]]
    p.draw.line(p.pixels(smooth(upper)), fill=rgb(dark), width=max(1, round(0.042 * p.unit)), joint="curve")
    lower = mix(identity.skin, (60, 25, 20), 0.45)
    p.draw.line(p.pixels(smooth(contour[[3, 4, 5, 0]])), fill=rgb(lower), width=max(1, round(0.02 * p.unit)))
    fold = upper - (0, 0.075)
    p.furrow(fold * (1, 1) + [(0, 0.03), (0, 0), (0, 0), (0, 0.03)], 0.45, 0.03)


def _brow(p: Painter, brow: Points) -> None:
    thickness = p.identity.brow_thickness * np.array([0.75, 1.0, 0.95, 0.7, 0.25])
    if brow[0, 0] < 0:
        thickness = thickness[::-1]
    half = np.column_stack([np.zeros(5), thickness / 2])
    outline = np.vstack([smooth(brow - half), smooth(brow + half)[::-1]])
    p.polygon(outline, mix(mix(p.identity.hair, (20, 14, 10), 0.35), p.identity.skin, 0.12))


def _mouth(p: Painter) -> None:
    outer, inner = p.points[g.LIPS_OUTER], p.points[g.LIPS_INNER]
    lips = p.identity.lips
    upper = np.vstack([smooth(outer[0:7]), smooth(inner[0:5])[::-1]])
    lower = np.vstack([smooth(outer[[6, 7, 8, 9, 10, 11, 0]]), smooth(inner[[4, 5, 6, 7, 0]])[::-1]])
    p.polygon(lower, mix(lips, (255, 220, 215), 0.1))
    p.polygon(upper, mix(lips, (50, 10, 10), 0.16))
    gap = float(inner[6, 1] - inner[2, 1])
    seam = rgb(mix(lips, (25, 6, 8), 0.72))
    if gap > 0.015:
        _mouth_inside(p, gap)
    width = max(1, round((0.03 + 0.015 * p.au[24]) * p.unit))
    p.draw.line(p.pixels(smooth((inner[0:5] + inner[[0, 7, 6, 5, 4]]) / 2 if gap < 0.04 else inner[0:5])), seam, width)
    for corner in (outer[0], outer[6]):
        x, y = project(corner[None], p.pose, p.side)[0]
        r = 0.022 * p.unit
        p.draw.ellipse((x - r, y - r, x + r, y + r), fill=seam)


def _mouth_inside(p: Painter, gap: float) -> None:
    """The opening: dark, with the upper teeth, a tongue when wide, and the lower teeth when the lip is drawn down.

    Args:
        p: The canvas.
        gap: Height of the opening in IOD.
    """
    inner = p.points[g.LIPS_INNER]
    upper, lower = smooth(inner[0:5]), smooth(inner[[4, 5, 6, 7, 0]])
    with p.within(np.vstack([upper, lower]), (52, 14, 18)) as (draw, corner):

        def fill(points: Points, colour: tuple[int, int, int]) -> None:
            draw.polygon((project(points, p.pose, p.side) - corner).ravel().tolist(), fill=colour)

        if gap > 0.16:
            tongue = np.array([(-0.2, inner[6, 1] + 0.02), (0, inner[6, 1] - 0.3 * gap), (0.2, inner[6, 1] + 0.02)])
            fill(smooth(tongue), (168, 72, 76))
        # A dropped jaw hides the teeth behind the lip; lips that are drawn up or sideways bare them.
        teeth = min(0.75 * gap, 0.03 + 0.06 * max(p.au[12], p.au[20], p.au[10]))
        fill(np.vstack([upper, (upper + (0, teeth))[::-1]]), (238, 232, 222))
        if p.au[16] > 0.3:
            fill(np.vstack([lower, (lower - (0, 0.05 * p.au[16]))[::-1]]), (226, 220, 208))


def _hair(p: Painter) -> None:
    identity = p.identity
    if identity.hair_style == "bald":
        return
    line, width = -identity.hair_line, identity.face_width
    half = np.array([(width + 0.08, -0.15), (width + 0.04, -0.8), (0.6, -1.5)])
    top = np.vstack([half, half[::-1] * (-1, 1)])
    if identity.hair_style == "fringe":
        rng = np.random.default_rng(int(identity.hair_line * 1e6))
        xs = np.linspace(-0.95, 0.95, 14)
        edge = np.column_stack([xs, -0.42 + rng.uniform(-0.12, 0.1, 14)])
    elif identity.hair_style == "parted":
        edge = np.array([(-0.97, -0.25), (-0.82, line + 0.25), (-0.3, line - 0.12), (0.3, line + 0.02), (0.97, -0.3)])
    else:
        temple = np.array([(-0.98, -0.25), (-0.88, line + 0.25), (-0.45, line)])
        edge = np.vstack([temple, temple[::-1] * (-1, 1)])
    edge[:, 0] *= width / 1.08 * 1.06
    cap = np.vstack([smooth(top), smooth(edge)])
    p.polygon(cap, identity.hair)
    p.shader.polygon(p.pixels(cap), fill=MID)


def _glasses(p: Painter) -> None:
    width = max(1, round(0.035 * p.unit))
    angle = np.linspace(0, 2 * np.pi, 17)
    ring = np.column_stack([0.36 * np.cos(angle), 0.27 * np.sin(angle)])
    for sign in (-1, 1):
        p.draw.line(p.pixels(ring + (sign * 0.5, 0.03)), fill=(30, 28, 28), width=width, joint="curve")
        p.draw.line(p.pixels(np.array([(sign * 0.86, -0.02), (sign * 1.1, -0.08)])), fill=(30, 28, 28), width=width)
    p.draw.line(p.pixels(arc(0, 0.0, 0.28, 0.05)), fill=(30, 28, 28), width=width)


def _occluder(p: Painter) -> None:
    n, side = p.nuisance, p.side
    centre = np.array([n.occluder_x, n.occluder_y]) * side
    along = np.array([np.cos(n.occluder_angle), np.sin(n.occluder_angle)])
    across = np.array([-along[1], along[0]])
    size = n.occluder_size * side
    colour = rgb(n.occluder_colour)
    match n.occluder:
        case "bar":
            half = np.array([-along, along]) * side * 0.6
            p.draw.line((centre + half).ravel().tolist(), fill=colour, width=max(1, int(size * 0.75)))
        case "hand":
            skin = rgb(p.identity.skin, 0.85)
            p.draw.ellipse((*(centre - size * 0.8), *(centre + size * 0.8)), fill=skin)
            for k in (-0.9, -0.3, 0.3, 0.9):
                base = centre + across * k * size * 0.7
                finger = np.array([base, base + along * size * 1.7])
                tone = rgb(p.identity.skin, 0.8 - 0.05 * abs(k))
                p.draw.line(finger.ravel().tolist(), fill=tone, width=int(size * 0.36))
        case "strands":
            rng = np.random.default_rng(n.seed)
            for start in rng.uniform(0.0, 1.0, 8):
                x = np.array([start, start + rng.normal(0, 0.08), start + rng.normal(0, 0.16)])
                strand = np.column_stack([x, np.array([0.0, 0.35, rng.uniform(0.5, 0.95)])]) * side
                p.draw.line(smooth(strand).ravel().tolist(), fill=rgb(p.identity.hair), width=max(1, side // 60))


def render_face(identity: Identity, vector: AuVector, nuisance: Nuisance, size: int = 64) -> NDArray[np.uint8]:
    """Draw a face: a pure function of its arguments.

    Args:
        identity: Whose face.
        vector: AU intensities, shape (2, len(AUS)), in [0, 1].
        nuisance: Pose, light, occlusion and camera.
        size: Side of the picture in pixels.

    Returns:
        RGB, uint8, shape (size, size, 3).
    """
    p = Painter(identity, vector, nuisance, size)
    _background(p)
    _head(p)
    _nose(p)
    _mouth(p)
    for contour, brow, sign in ((g.EYE_L, g.BROW_L, -1), (g.EYE_R, g.BROW_R, 1)):
        _eye(p, p.points[contour], sign)
        _brow(p, p.points[brow])
    draw_furrows(p)
    _hair(p)
    if identity.glasses:
        _glasses(p)
    if nuisance.occluder:
        _occluder(p)
    return expose(p.finish(), nuisance)
