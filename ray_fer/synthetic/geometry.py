"""From action units to landmarks: where every point of a face goes.

Points follow iBUG's 68-landmark layout, so that anything that reads landmarks can read these. Units are inter-ocular
distances (IOD) with the origin between the eyes, +x to the image's right, +y down. Directions and muscles follow FACS
(from memory and from teaching decks); the magnitudes per AU are design choices, sized so that 0.1 IOD is about 2 pixels
of a 64-pixel face.

Movements add up, then lengths are clipped (no negative aperture, gap or lip). Two pairs do more than add: 1+4 keeps the
inner brow up *and* knits it (the sad brow), and 24/23 keep the mouth shut (`action_units.combine`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_fer.synthetic.action_units import AU_INDEX, AUS, AuVector, combine
from ray_fer.synthetic.identity import Identity

Points = NDArray[np.float64]

JAW, BROW_L, BROW_R = slice(0, 17), slice(17, 22), slice(22, 27)
NOSE_BRIDGE, NOSE_BASE = slice(27, 31), slice(31, 36)
EYE_L, EYE_R = slice(36, 42), slice(42, 48)
LIPS_OUTER, LIPS_INNER = slice(48, 60), slice(60, 68)


@dataclass(frozen=True, slots=True)
class Pose:
    """Rotation of the head in radians, size and place in the picture.

    `iod` is the inter-ocular distance as a share of the picture's side; (`x`, `y`) the point between the eyes.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    iod: float = 0.36
    x: float = 0.5
    y: float = 0.4


def _side(identity: Identity, side: NDArray[np.float64]) -> dict[str, Points]:
    """Brow (5), eye (6) and nose wing of the side with +x. `side`: intensities of that side, shape (len(AUS),)."""
    a = {au: float(side[AU_INDEX[au]]) for au in AUS}
    x = np.array([0.0, 0.2, 0.42, 0.68, 1.0]) * 0.62 + identity.brow_inner_x
    y = -identity.brow_y - identity.brow_arch * np.array([0.0, 0.55, 0.95, 1.0, 0.15])
    y = y + identity.brow_tilt * np.array([1.0, 0.6, 0.1, -0.4, -0.8])
    y -= 0.14 * a[1] * np.array([1.0, 0.75, 0.36, 0.05, 0.0])
    y -= 0.14 * a[2] * np.array([0.0, 0.2, 0.57, 1.0, 0.95])
    y += a[4] * np.array([0.12, 0.115, 0.1, 0.09, 0.07])
    y -= 0.06 * a[1] * a[4] * np.array([1.0, 0.7, 0.2, 0.0, 0.0])
    y += 0.05 * a[9] * np.array([1.0, 0.6, 0.2, 0.0, 0.0])
    x -= 0.07 * a[4] * np.array([1.0, 0.85, 0.5, 0.15, 0.0])

    width = identity.eye_width
    upper = 0.118 * identity.eye_open * (1 - 0.1 * a[4]) + 0.07 * a[5] - 0.03 * a[7]
    lower = 0.075 * identity.eye_open - 0.04 * a[6] - 0.05 * a[7]
    lower = max(lower, -0.04)
    upper = max(upper, -lower + 0.02)
    upper = (1 - a[43]) * upper + a[43] * -lower
    inner_up = 0.02 * a[1]
    tilt = identity.eye_tilt
    eye = np.array(
        [
            (0.5 - width, 0.015),
            (0.5 - 0.42 * width, -upper * 0.92 - inner_up),
            (0.5 + 0.4 * width, -upper + 0.4 * tilt - 0.01 * a[2]),
            (0.5 + width, tilt + 0.02 * a[6]),
            (0.5 + 0.42 * width, lower + 0.3 * tilt),
            (0.5 - 0.4 * width, lower),
        ]
    )
    wing = identity.nose_width + 0.03 * a[10] + 0.03 * a[38] + 0.02 * a[9]
    wing_y = identity.nose_length + 0.06 - 0.06 * a[9] - 0.02 * a[10]
    return {"brow": np.column_stack([x, y]), "eye": eye, "wing": np.array([wing, wing_y])}


def _lip_thickness(m: dict[int, float]) -> float:
    """How full the lips are, relative to rest, at least a tenth."""
    thickness = (1 - 0.2 * m[12]) * (1 - 0.3 * m[20]) * (1 - 0.5 * m[23]) * (1 - 0.6 * m[24]) * (1 - 0.95 * m[28])
    return max(thickness * (1 + 0.3 * max(m[18], m[22])), 0.1)


def _corner(identity: Identity, side: NDArray[np.float64]) -> Points:
    """The corner of the mouth on the side with +x, shape (2,)."""
    a = {au: float(side[AU_INDEX[au]]) for au in AUS}
    x = identity.mouth_width + 0.12 * a[12] + 0.03 * a[14] + 0.02 * a[15] + 0.13 * a[20]
    x -= 0.1 * max(a[18], 0.8 * a[22]) + 0.02 * a[23] + 0.03 * a[24] + 0.02 * a[28] + 0.06 * max(a[26], a[27])
    y = identity.mouth_y + identity.mouth_curve - 0.1 * a[12] + 0.09 * a[15] + 0.03 * a[20] - 0.02 * a[14]
    y += 0.06 * a[26] + 0.12 * a[27]
    return np.array([x, y])


def _mouth(identity: Identity, vector: AuVector) -> tuple[Points, Points]:
    """Outer (12) and inner (8) contours of the lips in iBUG's order."""
    m = {au: float(vector[:, AU_INDEX[au]].mean()) for au in AUS}
    left, right = _corner(identity, vector[0]) * (-1, 1), _corner(identity, vector[1])
    gap = max((0.07 + 0.05 * m[12]) * m[25], 0.25 * m[26], 0.42 * m[27], 0.07 * m[22])
    raise_upper = 0.05 * m[10] + 0.03 * m[9]
    drop_lower = 0.05 * m[16] * (1 - m[24])
    centre = identity.mouth_y - 0.03 * m[17]
    top = centre - 0.2 * gap - raise_upper
    # The upper lip alone does not open the mouth: the lower one follows it unless the lips are parted.
    bottom = centre + 0.8 * gap + drop_lower - 0.8 * raise_upper * float(gap < 0.02)
    thickness = _lip_thickness(m)
    # A wide opening is an oval: the lip lines keep their height longer.
    roundness = 2.0 + 1.5 * min(gap / 0.25, 1.0)
    upper = identity.lip_upper * thickness + 0.03 * m[10] + 0.01 * m[9]
    lower = identity.lip_lower * thickness * (1 - 0.25 * m[17])

    def curve(share: Points, middle: float) -> Points:
        """Points of a lip line at shares -1..1 of the way from the centre to the corners, shape (n, 2)."""
        corner = np.where(share[:, None] < 0, left, right)
        size = np.abs(share)
        # A raised upper lip is square: it leaves the centre's height late.
        y = middle + (corner[:, 1] - middle) * size ** (roundness + 2.0 * m[10])
        return np.column_stack([corner[:, 0] * size, y])

    share = np.array([-0.68, -0.32, 0.0, 0.32, 0.68])
    upper_outer = curve(share, top) - np.column_stack([np.zeros(5), upper * np.array([0.72, 1.05, 0.86, 1.05, 0.72])])
    lower_outer = curve(share[::-1], bottom) + np.column_stack(
        [np.zeros(5), lower * np.array([0.62, 0.95, 1.0, 0.95, 0.62])]
    )
    outer = np.vstack([left, upper_outer, right, lower_outer])
    share = np.array([-0.5, 0.0, 0.5])
    inner = np.vstack([left * (0.94, 1), curve(share, top), right * (0.94, 1), curve(share[::-1], bottom)])
    return outer, inner


def landmarks(identity: Identity, vector: AuVector) -> Points:
    """The 68 iBUG landmarks of a frontal face.

    Args:
        identity: Whose face.
        vector: AU intensities, shape (2, len(AUS)); `combine` is applied here.

    Returns:
        Points in IOD, shape (68, 2), origin between the eyes, y down.
    """
    vector = combine(vector)
    m = vector.mean(axis=0)
    left, right = _side(identity, vector[0]), _side(identity, vector[1])
    mirror = np.array([-1.0, 1.0])
    points = np.empty((68, 2))

    drop = 0.12 * m[AU_INDEX[26]] + 0.25 * m[AU_INDEX[27]] - 0.03 * m[AU_INDEX[17]]
    angle = np.linspace(0, np.pi / 2, 9)
    jaw_x = identity.face_width * np.cos(angle) ** identity.jaw_power
    jaw_x[-1] = 0.0  # not the rounding error of cos(pi / 2)
    jaw_y = -0.1 + (identity.chin_y + drop + 0.1) * np.sin(angle)
    points[0:9] = np.column_stack([-jaw_x, jaw_y])
    points[9:17] = np.column_stack([jaw_x, jaw_y])[-2::-1]

    points[BROW_L] = (left["brow"] * mirror)[::-1]
    points[BROW_R] = right["brow"]
    tip = identity.nose_length - 0.03 * m[AU_INDEX[9]]
    points[NOSE_BRIDGE] = np.column_stack([np.zeros(4), np.linspace(0.02, tip, 4)])
    wing_l, wing_r = left["wing"] * mirror, right["wing"]
    base = np.array([0.0, identity.nose_length + 0.13 - 0.02 * m[AU_INDEX[9]]])
    points[NOSE_BASE] = [wing_l, (wing_l + base) / 2 + (0, 0.025), base, (wing_r + base) / 2 + (0, 0.025), wing_r]
    eye_l = left["eye"] * mirror
    points[EYE_L] = eye_l[[3, 2, 1, 0, 5, 4]]
    points[EYE_R] = right["eye"]
    points[LIPS_OUTER], points[LIPS_INNER] = _mouth(identity, vector)
    return points


def _depth(points: Points) -> Points:
    """How far a point of the face lies before the axis the head turns about, in IOD, shape (N,)."""
    x, y = points[:, 0], points[:, 1]
    head = 0.95 * np.sqrt(np.maximum(0.03, 1 - (x / 1.3) ** 2 - ((y - 0.3) / 2.2) ** 2))
    nose = 0.32 * np.exp(-((x / 0.16) ** 2) - ((y - 0.55) / 0.24) ** 2)
    return np.asarray(head + nose - 0.5)


def project(points: Points, pose: Pose, size: float) -> Points:
    """Place frontal points, shape (N, 2) in IOD, in a picture: shape (N, 2) in pixels of a side of `size` pixels."""
    depth = _depth(points)
    x = points[:, 0] * np.cos(pose.yaw) + depth * np.sin(pose.yaw)
    y = points[:, 1] * np.cos(pose.pitch) + depth * np.sin(pose.pitch)
    cos, sin = np.cos(pose.roll), np.sin(pose.roll)
    scale = pose.iod * size
    return np.column_stack([pose.x * size + scale * (x * cos - y * sin), pose.y * size + scale * (x * sin + y * cos)])
