"""Every chapter stands in the frame."""

import frame
import pytest
import storage
import store


@pytest.mark.parametrize("check", frame.CHECKS, ids=lambda check: check.__name__)
def test_frame(chapter, check):
    assert check(chapter) == []


@pytest.mark.parametrize("check", storage.CHECKS, ids=lambda check: check.__name__)
def test_storage(chapter, check):
    assert check(chapter) == []


def test_stored_in_the_one_spelling(chapter, chapter_path):
    """Else `store.py` would rewrite lines that nobody changed."""
    assert chapter_path.read_text(encoding="utf-8") == store.serialise(chapter)
