"""The documents name only files and folders that exist."""

import re

import pytest

from tests.support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# A path of this repository, without a placeholder such as NAME or <model>.
PATH = re.compile(r"\b(?:exact_titan|tests|docs|scripts|train_configs)/[\w./-]*[\w/]")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_path_in_a_document_exists(document):
    named = [path for path in PATH.findall(document.read_text(encoding="utf-8")) if "NAME" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_link_to_a_file_leads_somewhere():
    for document in DOCUMENTS:
        links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        files = [link for link in links if not link.startswith("http")]
        assert [link for link in files if not (document.parent / link).exists()] == [], document
