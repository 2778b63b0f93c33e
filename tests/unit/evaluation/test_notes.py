"""Which texts have no spaces between words, and what is told of a test set."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnisparse.data.tokenizer import Tokenizer
from omnisparse.evaluation.notes import corpus_notes, is_unspaced

UNSPACED = {
    "Chinese": ["打开客厅的灯", "今天天气怎么样", "好"],
    "Chinese with punctuation": ["打开客厅的灯。", "今天,天气怎么样?"],
    "Chinese with some English": ["播放 Taylor 的歌曲给我听吧谢谢你", "打开wifi"],
    "Chinese commands": ["开灯", "关灯", "停"],
    "Japanese": ["リビングの電気をつけて", "きょうのてんきは"],
    "Thai": ["เปิดไฟห้องนั่งเล่น วันนี้อากาศเป็นอย่างไร"],
    "Lao": ["ເປີດໄຟຫ້ອງຮັບແຂກ"],
    "Khmer": ["បើកភ្លើងបន្ទប់ទទួលភ្ញៀវ"],
    "Burmese": ["ဧည့်ခန်းမီးဖွင့်ပါ"],
    "English without spaces": ["turnonthelightnow", "whatisthetimetoday"],
}

SPACED = {
    "English": ["turn on the light", "stop"],
    "single words": ["seven", "nine", "zero"],
    "long German words": ["Donaudampfschifffahrt", "das Licht", "an"],
    "Finnish": ["sytyttäisitköhän olohuoneen valot", "kiitos"],
    "Korean": ["거실 불을 켜 주세요", "오늘 날씨 어때"],
    "Korean words": ["안녕하세요", "네"],
    "Chinese cut into characters": ["打 开 客 厅 的 灯"],
    "Chinese cut into words": ["打开 客厅 的 灯", "今天 天气 怎么样"],
    "Thai cut into words": ["เปิด ไฟ ห้อง นั่งเล่น"],
    "Arabic": ["شغل الضوء في الغرفة"],
    "Hindi": ["बत्ती जला दो"],
    "nothing": ["", " "],
}


@pytest.mark.parametrize("name", [*UNSPACED, *SPACED])
def test_texts_without_spaces_are_known(name: str) -> None:
    assert is_unspaced({**UNSPACED, **SPACED}[name]) == (name in UNSPACED)


def test_what_is_told_of_a_test_set(tmp_path: Path) -> None:
    one = Tokenizer.train(["turn on the light"], 20, tmp_path / "a")
    same = Tokenizer.from_bytes(one.to_bytes())
    assert corpus_notes(["turn on the light"] * 20, [one, same], list("abcdefghij") * 2) == []
    notes = corpus_notes(["打开客厅的灯"], [one, same], [None])
    assert "use the character error rate" in notes[0]
    assert "no interval and no p-value" in notes[1]
    assert "1 of 1 words (100.0 %, in 1 transcripts) hold characters" in notes[2]
    assert len(notes) == 3
