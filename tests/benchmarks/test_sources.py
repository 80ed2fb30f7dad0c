"""What the items of a benchmark came from, which its intervals are drawn over."""

from __future__ import annotations

from pydoc_data.topics import topics

from examples.real_data import prose, prose_sections


def test_every_section_is_on_the_page_that_is_said_to_have_it() -> None:
    sections = prose_sections()
    assert [(title, text) for title, text, _ in sections] == prose()
    for title, text, page in sections:
        assert title in topics[page].replace('"', "")
        assert text in topics[page]


def test_a_page_has_several_sections() -> None:
    pages = {page for _, _, page in prose_sections()}
    assert 1 < len(pages) < len(prose_sections()) / 2
