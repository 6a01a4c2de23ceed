"""Names in pictures: in fonts that have their letters, else as numbers that the page explains; never boxes."""

import functools
import pathlib
import re
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from tubevit import storage
from tubevit.visualize import attention, confusion, curves, mistakes
from tubevit.visualize.lettering import Lettering, _needs_layout
from tubevit.visualize.page import Picture, Section, write_page
from tubevit.visualize.style import LIGHT

MATPLOTLIB_FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
# DejaVu Sans, matplotlib's own, has the letters of the first four.
DRAWN, NUMBERED = ("cat", "кошка", "γάτα", "café"), ("猫", "ねこ", "고양이", "बिल्ली", "แมว", "a\tb", "x\udcff")
NAMES = (*DRAWN, *NUMBERED)


def font(path: pathlib.Path, letters: str, advance: int = 800) -> str:
    """Make a font that has these letters, as squares; `advance` is the width of a letter in thousandths of the size."""
    glyphs = {".notdef": None, **{f"uni{ord(letter):04X}": letter for letter in letters}}
    pen = TTGlyphPen(None)
    for place, draw in (((0, 0), pen.moveTo), ((0, 700), pen.lineTo), ((700, 700), pen.lineTo), ((700, 0), pen.lineTo)):
        draw(place)
    pen.closePath()
    square = pen.glyph()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder(list(glyphs))
    made.setupCharacterMap({ord(letter): name for name, letter in glyphs.items() if letter})
    made.setupGlyf(dict.fromkeys(glyphs, square))
    made.setupHorizontalMetrics(dict.fromkeys(glyphs, (advance, 50)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": path.stem, "styleName": "Regular", "psName": path.stem})
    made.setupOS2()
    made.setupPost()
    made.save(path)
    return str(path)


def pictures(names):
    """All pictures that show names, with the first names in those that have room for a few."""
    clip, count = np.zeros((4, 16, 16, 3), np.uint8), len(names)
    found = [mistakes.Mistake(0, i, i - 1, 0.5) for i in range(count)]
    metrics = {f"eval/{name}/top1": (np.array([1, 2]), np.array([0.5, 0.6])) for name in names if "/" not in name}
    draws = {
        "confusion": functools.partial(confusion.confusion_figure, np.ones((count, count), int), names),
        "mistakes": functools.partial(mistakes.mistakes_figure, [clip] * count, found, names),
        "attention": functools.partial(attention.attention_figure, clip, clip[..., 0], clip[..., 0], "".join(names)),
        "scores": functools.partial(curves.score_figure, metrics),
    }
    return [Picture(name, "", draw) for name, draw in draws.items()]


@pytest.fixture(autouse=True)
def no_warnings():
    """A letter without a glyph is a warning of matplotlib."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("picture", pictures(NAMES), ids=lambda picture: picture.name)
def test_letters_without_a_font_are_numbers_that_the_page_explains(picture, tmp_path, said):
    page = pathlib.Path(write_page(tmp_path / "out", "title", {}, [Section("names", "", [picture])], fonts=[]))
    text = page.read_text()
    expected = ["".join(NAMES)] if picture.name == "attention" else NUMBERED
    for name in expected:
        assert f"] {storage.printable(name)}" in text
    assert "] кошка" not in text
    (line,) = said
    assert line.startswith("no font of this machine has all letters of ") and "\n" not in line
    assert f" and {len(expected) - 1} more" in line or len(expected) == 1


def test_letters_of_a_font_are_drawn_with_it(tmp_path, said):
    cat, korean = font(tmp_path / "CatLetters.ttf", "猫ねこ"), font(tmp_path / "KoreanLetters.ttf", "고양이")
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    names = ["cat", "猫ねこ고양이", "고양이"]  # the second takes three fonts
    fonts = [str(tmp_path / "broken.ttf"), str(tmp_path / "none.ttf"), cat, korean]
    before = matplotlib.rcParams["font.family"]
    drawn = pictures(names)
    page = pathlib.Path(write_page(tmp_path / "out", "title", {}, [Section("names", "", drawn)], fonts))
    assert said == [] and "<figcaption>" not in page.read_text()
    assert matplotlib.rcParams["font.family"] == before
    with_font = (tmp_path / "out/confusion.svg").read_text()
    for family, count in (("CatLetters", 3), ("KoreanLetters", 3)):  # a shape for each letter
        assert len(set(re.findall(rf"\bid=.{family}-\w+", with_font))) == count


def test_wide_letters_leave_room_for_the_pictures(tmp_path):
    lettering = Lettering([font(tmp_path / "CatLetters.ttf", "猫", advance=1000)])
    clip = np.zeros((16, 32, 32, 3), np.uint8)
    found = [mistakes.Mistake(i, i % 2, 1 - i % 2, 0.9) for i in range(8)]
    with lettering.used():
        text = ",  ".join(f"{'猫' * 7} (90%)" for _ in range(8))
        titled = attention.attention_figure(clip, clip[..., 0], clip[..., 0], text)
        strips = mistakes.mistakes_figure([clip] * 8, found, ("猫" * 7, "猫" * 30))
    for figure in (titled, strips):
        lettering.apply(figure)
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert axes.get_position().width > 0.9 and axes.get_tightbbox().x1 <= figure.bbox.x1 + 1
    assert titled._suptitle.get_window_extent().x1 <= titled.bbox.x1
    assert titled._suptitle.get_text().count("猫") == 7 * 8 and not lettering.numbered


def test_the_font_of_boxes_is_not_used(tmp_path):
    lettering = Lettering([str(path) for path in MATPLOTLIB_FONTS.glob("LastResort*")])
    (picture, *_) = pictures(["cat", "猫"])
    picture.rendered(LIGHT, ["png"], lettering)
    assert lettering.numbered == {"猫": 1}


def test_scripts_that_must_be_laid_out():
    """Before matplotlib 3.11, letters stand one after the other, from left to right."""
    assert [any(map(_needs_layout, name)) for name in ("cat", "кошка", "猫", "แมว")] == [False] * 4
    assert all(any(map(_needs_layout, name)) for name in ("قط", "חתול", "बिल्ली", "பூனை"))
