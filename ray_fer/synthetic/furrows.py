"""The creases an action unit leaves in the skin: half of what makes an expression readable at 64 pixels.

Which crease goes with which AU follows FACS; places and strengths are design choices.
"""

import numpy as np

from ray_fer.synthetic.painter import Painter, arc


def draw_furrows(p: Painter) -> None:
    """Draw every crease of the face's AUs and age on the shading layer."""
    _furrows_upper(p)
    _furrows_lower(p)


def _furrows_upper(p: Painter) -> None:
    a, brow_y, age = p.au, p.identity.brow_y, p.identity.age_lines
    for k, y in enumerate((0.3, 0.42)):
        p.furrow(arc(0, -brow_y - y, 0.5, -0.02), 0.75 * a[1] + 0.4 * age - 0.08 * k)
        for sign, side in ((-1, p.side_au[0]), (1, p.side_au[1])):
            p.furrow(arc(sign * 0.58, -brow_y - y + 0.02, 0.46, 0.06), 0.7 * side[2] + 0.3 * age - 0.08 * k)
    for x in (-0.075, 0.075):
        p.furrow(np.array([(x * 1.2, -brow_y - 0.12), (x, -0.3), (x * 0.9, -0.16)]), 0.9 * a[4] + 0.25 * age - 0.05)
    for y in (0.08, 0.17, 0.26):
        p.furrow(arc(0, y, 0.26, 0.035), 0.95 * a[9], 0.04)
    for sign, side in ((-1, p.side_au[0]), (1, p.side_au[1])):
        corner = np.array([sign * (0.5 + p.identity.eye_width + 0.05), 0.02])
        for dy in (-0.07, 0.02, 0.1):
            p.furrow(np.vstack([corner + (0, dy * 0.4), corner + (sign * 0.16, dy)]), 0.75 * side[6])
        low = p.points[41 if sign < 0 else 46, 1]
        p.furrow(arc(sign * 0.5, low + 0.1, 0.5, -0.05), 0.6 * side[6] + 0.3 * age)
        p.furrow(arc(sign * 0.5, low + 0.045, 0.46, 0.0), 0.65 * side[7], 0.028)


def _furrows_lower(p: Painter) -> None:
    age = p.identity.age_lines
    for sign, side, corner in ((-1, p.side_au[0], p.points[48]), (1, p.side_au[1], p.points[54])):
        wing = p.points[31 if sign < 0 else 35] + (sign * 0.06, -0.06)
        strength = max(0.8 * side[12], 0.9 * side[10], 0.75 * side[9], 0.85 * side[11], 0.2 * side[20]) + 0.5 * age
        end = np.array([corner[0] + sign * (0.1 + 0.03 * side[12]), corner[1] - 0.06])
        bulge = np.array([sign * (0.06 + 0.04 * side[12]), -0.05])
        p.furrow(np.vstack([wing, (wing + end) / 2 + bulge, end]), strength, 0.042)
        p.furrow(np.vstack([wing, wing + (sign * 0.12, 0.12)]), 0.9 * side[11], 0.05)
        dimple = corner + (sign * 0.06, -0.01)
        p.furrow(np.vstack([dimple + (0, -0.08), dimple + (sign * 0.02, 0), dimple + (0, 0.08)]), 0.85 * side[14], 0.05)
        pouch = np.array([(0.0, 0.06), (sign * 0.05, 0.12), (sign * 0.03, 0.22)])
        p.furrow(corner + pouch, 0.85 * side[15] + 0.3 * age, 0.04)
        p.furrow(corner + [(sign * 0.07, -0.1), (sign * 0.1, 0.0), (sign * 0.08, 0.1)], 0.7 * side[20], 0.035)
    chin, lip = p.points[8, 1], p.points[57, 1]
    for x, y in ((-0.12, 0.0), (0.02, 0.06), (0.13, -0.01), (-0.05, -0.06), (0.07, 0.1), (-0.11, 0.1)):
        dot = np.array([x, (chin + lip) / 2 + 0.03 + y])
        p.furrow(np.vstack([dot, dot + (0.03, 0.015)]), 0.8 * p.au[17], 0.045)
    p.furrow(arc(0, lip + 0.07, 0.36, 0.04), 0.5 * p.au[17])
    upper = p.points[51, 1]
    pucker = max(p.au[18], 0.6 * p.au[22], 0.6 * p.au[23])
    for x in (-0.22, -0.08, 0.08, 0.22):
        p.furrow(np.array([(x * 1.1, upper - 0.11), (x, upper - 0.02)]), 0.6 * pucker)
        p.furrow(np.array([(x, lip + 0.02), (x * 1.1, lip + 0.1)]), 0.5 * pucker)
    if p.au[24] > 0.05:
        p.shadow((0.0, upper - 0.1), (0.3, 0.06), 0.2 * p.au[24])
        p.shadow((0.0, lip + 0.08), (0.26, 0.05), -0.3 * p.au[24])
    p.furrow(arc(0, upper - 0.07, 0.36, 0.02), 0.7 * p.au[28])
    p.furrow(arc(0, lip + 0.06, 0.4, -0.02), 0.7 * p.au[28])
