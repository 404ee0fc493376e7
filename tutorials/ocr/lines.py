"""Lines of text as pictures, in Pillow's own font: what the reader was trained on, and is tried on."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEIGHT, WIDTH = 32, 160


def line(rng):
    """A picture, uint8 (32, 160), and its text of three to eight characters.

    Size, place and contrast vary; it is light on dark or dark on light, lit from one side, and noisy.
    """
    font = ImageFont.load_default(size=int(rng.integers(16, 27)))
    text = "".join(rng.choice(list(ALPHABET), rng.integers(3, 9)))
    while font.getbbox(text)[2] > WIDTH - 8:
        text = text[:-1]
    _, top, right, bottom = font.getbbox(text)
    x = rng.integers(2, WIDTH - 2 - right)
    y = rng.integers(1, HEIGHT - 1 - (bottom - top)) - top
    mask = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).text((x, y), text, fill=255, font=font)
    ink = np.asarray(mask, np.float32) / 255
    contrast = rng.uniform(50, 180) * rng.choice([-1, 1])
    ground = rng.uniform(max(0, -contrast), min(255, 255 - contrast))
    light = rng.uniform(-30, 30) * np.linspace(-1, 1, WIDTH, dtype=np.float32)
    noise = rng.uniform(4, 24) * rng.standard_normal((HEIGHT, WIDTH), np.float32)
    return np.clip(ground + contrast * ink + light + noise, 0, 255).astype(np.uint8), text


def normalise(picture):
    """uint8 (32, 160) -> float32 (1, 1, 32, 160), what the network takes."""
    return (picture[None, None].astype(np.float32) - 127.5) / 127.5
