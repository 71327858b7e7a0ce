"""Sentences written on pictures: wrapped, each with its colour, in whatever script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK, PAPER = (30, 30, 30), (255, 255, 255)

_LONGEST = 2000  # characters of a sentence that are looked at
# What systems have for the scripts that DejaVu lacks; Pillow finds them by name.
_OTHER_FONTS = ("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc")


def caption(entries: Sequence[tuple[str, Colour]], width: int, letter: int, most: int, each: int = 2) -> Image.Image:
    """A strip of sentences; of several each follows a square of its colour.

    Args:
        entries: Sentences and their colours.
        width: Of the strip in pixels.
        letter: Size of the letters in pixels.
        most: At most so many lines; what does not fit is counted.
        each: At most so many lines per sentence, where there are several.
    """
    several = len(entries) > 1
    line, gap = round(letter * 1.4), max(3, letter // 3)
    left = gap + (letter + gap if several else 0)
    texts = [_printable(text) for text, _ in entries]
    font = _font(letter, frozenset("".join(texts)))
    shown: list[tuple[list[str], Colour]] = []
    free = most
    for number, (text, (_, colour)) in enumerate(zip(texts, entries, strict=True)):
        room = free - (number < len(entries) - 1)  # the last line is for how many more there are
        if several and not room:
            shown.append(([f"and {len(entries) - number} more"], PAPER))
            break
        lines = _wrapped(text, font, width - left - gap, min(room, each) if several else most)
        shown.append((lines, colour))
        free -= len(lines)
    strip = Image.new("RGB", (width, sum(len(lines) for lines, _ in shown) * line + 2 * gap), PAPER)
    draw, top = ImageDraw.Draw(strip), gap
    for lines, colour in shown:
        if several:
            draw.rectangle((gap, top + letter // 8, gap + letter - 1, top + letter // 8 + letter - 1), fill=colour)
        for text in lines:
            draw.text((left, top), text, fill=INK, font=font)
            top += line
    return strip


def _printable(text: str) -> str:
    text = " ".join(text[:_LONGEST].split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """At most so many lines, of words where possible and of letters where not; an ellipsis ends what is cut."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
        if len(lines) > most:
            break
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[most - 1 :] = [f"{last}…"]
    return lines


@cache
def _font(size: int, characters: frozenset[str]) -> ImageFont.FreeTypeFont:
    """DejaVu, which matplotlib brings, or a font of the system that has more of these characters."""
    import matplotlib as mpl

    usual = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    if not _lacking(usual, characters):
        return usual
    fonts = [usual]
    for name in _OTHER_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return min(fonts, key=lambda font: _lacking(font, characters))


def _lacking(font: ImageFont.FreeTypeFont, characters: frozenset[str]) -> int:
    """How many of the characters the font shows as the box that stands for all it lacks."""
    box = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(character)) == box for character in characters)
