"""The documents name only files and folders that exist."""

import re

import pytest

from tests.support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# A path of this repository, without a placeholder such as NAME or <model>.
PATH = re.compile(r"\b(?:exact_titan|tests|docs|scripts|train_configs|studies)/[\w./-]*[\w/]")
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")
# README's links to this repository are absolute, because PyPI shows README without the other files.
REPOSITORY = re.compile(
    r"https://(?:github\.com/exact-titan/exact_titan/blob|raw\.githubusercontent\.com/exact-titan/exact_titan)/main/"
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_path_in_a_document_exists(document):
    text = re.sub(r"https://\S+", "", document.read_text(encoding="utf-8"))
    named = [path for path in PATH.findall(text) if "NAME" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_link_to_a_file_leads_somewhere():
    for document in DOCUMENTS:
        for link in LINK.findall(document.read_text(encoding="utf-8")):
            if REPOSITORY.match(link):
                assert (ROOT / REPOSITORY.sub("", link)).exists(), (document, link)
            elif not link.startswith("https://"):
                assert (document.parent / link).exists(), (document, link)


def test_readmes_links_are_absolute():
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
