"""Names and links that stay inside a folder, and files that are copied only if they are what their names say."""

from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.system.folder_files import check_inside, checked_content, copy_files, is_plain_name, leads_outside


@pytest.mark.parametrize("name", ["a.safetensors", ".metadata", "__0_0.distcp", "..a", "é"])
def test_plain_names(name):
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/b", "../a", "a/", "a\\b", "a\0", "\ud800", None, 3, ["a"]])
def test_names_that_are_not_plain(name):
    assert not is_plain_name(name)


@pytest.fixture
def snapshot(tmp_path) -> Path:
    """A snapshot in the cache of the Hugging Face hub: links to ``../../blobs``."""
    repository = tmp_path / "hub" / "models--owner--name"
    folder, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    for one in (folder, blobs):
        one.mkdir(parents=True)
    (blobs / "5f2a").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/5f2a")
    return folder


def test_the_links_of_a_hub_snapshot_are_part_of_the_folder(snapshot, tmp_path):
    assert checked_content(snapshot, snapshot / "config.json") == b"{}"
    (tmp_path / "mine").symlink_to(snapshot)
    assert checked_content(tmp_path / "mine", tmp_path / "mine" / "config.json") == b"{}"
    (snapshot / "sub").mkdir()
    (snapshot / "sub" / "config.json").symlink_to("../../../blobs/5f2a")
    assert not leads_outside(snapshot / "sub", snapshot / "sub" / "config.json")


def test_a_snapshot_does_not_lead_to_another_place(snapshot, tmp_path):
    (tmp_path / "hub" / "token").write_text("{}")
    (snapshot.parents[1] / "blobs" / "deep").mkdir()
    (snapshot.parents[1] / "blobs" / "deep" / "file").write_text("{}")
    (snapshot.parents[1] / "refs").write_text("{}")
    for number, target in enumerate(["../../../token", "../../refs", "../../blobs/deep/file", "/etc/hostname"]):
        link = snapshot / f"{number}.json"
        link.symlink_to(target)
        assert leads_outside(snapshot, link)


def test_links_inside_a_folder_and_links_to_a_folder_are_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    (folder / "b.json").symlink_to("a.json")
    (tmp_path / "link").symlink_to(folder)
    check_inside(folder, folder / "b.json")
    check_inside(tmp_path / "link", tmp_path / "link" / "b.json")


@pytest.mark.parametrize("how", ["link", "absolute link", "folder", "chain"])
def test_a_private_file_is_not_copied(tmp_path, how):
    folder, target = tmp_path / "folder", tmp_path / "target"
    for one in (folder, target, tmp_path / "private"):
        one.mkdir()
    (tmp_path / "private" / "a.json").write_text('{"secret": 1}')
    match how:
        case "link":
            (folder / "a.json").symlink_to("../private/a.json")
        case "absolute link":
            (folder / "a.json").symlink_to(tmp_path / "private" / "a.json")
        case "chain":
            (folder / "b.json").symlink_to("../private/a.json")
            (folder / "a.json").symlink_to("b.json")
        case "folder":
            (folder / "sub").symlink_to("../private")
    name = "sub/a.json" if how == "folder" else "a.json"
    with pytest.raises(InputError, match=f"{folder / name} is a link to {tmp_path / 'private' / 'a.json'}"):
        copy_files(folder, target, [name])
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"-----BEGIN OPENSSH PRIVATE KEY-----", "is not a JSON object"),
        ("a.json", b"[1]", "is not a JSON object"),
        ("a.json", b'{"a": "\xff"}', "is not a JSON object"),
        ("a.json", b"[" * 100_000, "brackets inside each other"),
        ("a.json", b'{"a": ' * 70 + b"1" + b"}" * 70, "brackets inside each other"),
        ("a.jinja", b"\xff", "is not text in UTF-8"),
        ("merges.txt", b"\xff", "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_not_copied(tmp_path, name, content, message):
    (tmp_path / "target").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        copy_files(tmp_path, tmp_path / "target", [name])
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "target").iterdir())


def test_a_file_that_is_too_large_is_not_copied(tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as out:
        out.truncate(2**28 + 1)
    with pytest.raises(InputError, match=r"is not a tokenizer \(it has more than 268,435,456 bytes\)"):
        checked_content(tmp_path, tmp_path / "tokenizer.model")


def test_missing_files_and_folders_are_left_out(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").symlink_to("nothing")
    copy_files(tmp_path, tmp_path / "target", ["a.json", "b.json", "c.json"])
    assert not list((tmp_path / "target").iterdir())
