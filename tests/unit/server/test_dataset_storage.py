"""A dataset's folder: nothing is read or written outside of it, and holes stay holes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_invocations.server.dataset_storage import Folder, FolderUnavailableError
from airflow_invocations.server.skipped_entries import summarize

GIBIBYTE = 1024**3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    return outside


def test_only_files_are_found_and_no_link_is_followed(root: Path, outside: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "\N{SNOWMAN} c").write_text("123")
    (root / ".hidden").write_text("")
    (root / "link").symlink_to(outside / "secret")
    (root / "folder-link").symlink_to(outside)
    (root / "a" / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"not-utf8-\xff")).write_text("")
    assert {path: file.size for path, file in Folder(root).scan().files.items()} == {
        "a/b/\N{SNOWMAN} c": 3,
        ".hidden": 0,
    }


@pytest.mark.parametrize(
    "path", ["../outside/secret", "a/../../outside/secret", "/etc/passwd", "", ".", "a//b", "a\0"]
)
def test_a_path_that_leads_out_is_rejected(root: Path, outside: Path, tmp_path: Path, path: str) -> None:
    folder = Folder(root)
    with pytest.raises(ValueError, match="is not a relative path"):
        folder.copy_out(path, tmp_path / "copy")
    with pytest.raises(ValueError, match="is not a relative path"):
        folder.copy_in(outside / "secret", path)


def test_a_link_is_neither_read_nor_written_through(root: Path, outside: Path, tmp_path: Path) -> None:
    (root / "file-link").symlink_to(outside / "secret")
    (root / "folder-link").symlink_to(outside)
    folder = Folder(root)
    for path in ("file-link", "folder-link/secret"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            folder.copy_out(path, tmp_path / "copy")
    source = tmp_path / "new"
    source.write_text("new")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        folder.copy_in(source, "folder-link/secret")
    folder.copy_in(source, "file-link")  # takes the link's place
    assert (root / "file-link").read_text() == "new"
    assert not (root / "file-link").is_symlink()
    assert (outside / "secret").read_text() == "not yours"


def test_entry_that_is_not_a_file_cannot_be_read(root: Path, tmp_path: Path) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    for path in ("folder", "pipe"):
        with pytest.raises(OSError, match="is not a file"):
            Folder(root).copy_out(path, tmp_path / f"copy-of-{path}")


def test_a_copy_shares_nothing_with_the_original(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(bytes(range(256)) * 10_000)
    copy = tmp_path / "copy"
    Folder(root).copy_out("file", copy)
    assert copy.read_bytes() == (root / "file").read_bytes()
    copy.write_text("changed by the action")
    assert (root / "file").stat().st_size == 2_560_000


def test_holes_stay_holes(root: Path, tmp_path: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(2 * GIBIBYTE)
        file.seek(GIBIBYTE)
        file.write(b"in the middle")
    copy = tmp_path / "copy"
    Folder(root).copy_out("sparse", copy)
    about = copy.stat()
    assert about.st_size == 2 * GIBIBYTE
    assert about.st_blocks * 512 < 10 * 1024**2
    with copy.open("rb") as file:
        file.seek(GIBIBYTE)
        assert file.read(13) == b"in the middle"
        assert file.read(13) == bytes(13)


def test_a_file_is_put_there_whole_or_not_at_all(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "deep").mkdir()
    (root / "deep" / "file").write_text("old")
    source = tmp_path / "new"
    source.write_text("new")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("airflow_invocations.server.dataset_storage._copy", full)
        with pytest.raises(OSError, match="No space left"):
            Folder(root).copy_in(source, "deep/file")
    assert [path.name for path in (root / "deep").iterdir()] == ["file"]
    assert (root / "deep" / "file").read_text() == "old"
    Folder(root).copy_in(source, "deep/file")
    Folder(root).copy_in(source, "made/on/the/way")
    assert (root / "deep" / "file").read_text() == (root / "made" / "on" / "the" / "way").read_text() == "new"


def test_unfinished_upload_is_not_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    folder = Folder(root)
    monkeypatch.setattr(
        "airflow_invocations.server.dataset_storage._copy", lambda *_: seen.append(dict(folder.scan().files))
    )
    folder.copy_in(Path(__file__), "file")
    assert seen == [{}]
    assert list(folder.scan().files) == ["file"]


def test_writers_of_one_file_do_not_mix(root: Path, tmp_path: Path) -> None:
    sources = [tmp_path / str(number) for number in range(4)]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * 1_000_000)
    threads = [threading.Thread(target=Folder(root).copy_in, args=(source, "file")) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((root / "file").read_bytes())) == 1
    assert list(Folder(root).scan().files) == ["file"]


def test_one_file_is_found_as_all_of_them_are(root: Path, outside: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "file").write_text("123")
    (root / "link").symlink_to(outside / "secret")
    (root / "folder-link").symlink_to(outside)
    os.mkfifo(root / "pipe")
    folder = Folder(root)
    found = folder.scan().files
    for path in ("a/file", "a", "link", "folder-link/secret", "pipe", "none", "a/none", "a/file/none"):
        assert folder.find(path) == found.get(path), path


def test_concurrent_changes_hide_no_file(root: Path, outside: Path) -> None:
    """Another process keeps its temporary files in the folder, and swaps folders for files and links."""
    for number in range(300):
        (root / f"keep-{number}.csv").write_text("kept")
    until = time.monotonic() + 3

    def disturb(name: str) -> None:
        below = root / name
        while time.monotonic() < until:
            below.mkdir()
            for number in range(20):
                (below / f".download-{number}.part").write_text("")
            shutil.rmtree(below)
            below.write_text("")
            below.unlink()
            below.symlink_to(outside)
            below.unlink()

    scans = 0
    with ThreadPoolExecutor() as threads:
        disturbing = [threads.submit(disturb, name) for name in ("first", "second")]
        while not all(one.done() for one in disturbing):
            found = Folder(root).scan().files
            assert sum(path.startswith("keep-") for path in found) == 300
            assert not any("secret" in path for path in found)
            scans += 1
        for one in disturbing:
            one.result()
    assert scans > 10


def test_a_folder_that_is_away_is_no_file_that_has_gone(root: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "away")
    (tmp_path / "file").write_text("")
    for missing in (folder, Folder(tmp_path / "file"), Folder(tmp_path / "file" / "below")):
        for look in (missing.scan, lambda: missing.find("a"), lambda: missing.copy_out("a", root / "a")):  # noqa: B023
            with pytest.raises(FolderUnavailableError):
                look()


def test_skipped_entries_are_counted_by_kind_with_the_first_of_each(root: Path, outside: Path) -> None:
    (root / "file").write_text("")
    for name in ("b", "a"):
        (root / name).symlink_to(outside)
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"M\xfcnchen.csv")).write_text("")
    (root / ".invocations-part-0123456789abcdef").write_text("")
    scan = Folder(root).scan()
    assert list(scan.files) == ["file"]
    assert summarize(scan.skipped) == (
        "2 symbolic links (the first: 'a'), 1 name that isn't UTF-8 ('M\\xfcnchen.csv'), "
        "1 entry that is neither file nor folder ('pipe'), "
        "1 unfinished upload ('.invocations-part-0123456789abcdef')"
    )
    assert summarize([]) == ""


def test_a_file_whose_name_only_looks_like_an_unfinished_upload_is_a_file(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "new"
    source.write_text("new")
    folder = Folder(root)
    folder.copy_in(source, ".invocations-part-of-mine")
    assert list(folder.scan().files) == [".invocations-part-of-mine"]
    assert folder.find(".invocations-part-of-mine") is not None
    with pytest.raises(ValueError, match="has the name of an unfinished upload"):
        folder.copy_in(source, "a/.invocations-part-0123456789abcdef")


def test_a_name_that_is_not_utf8_is_rejected_with_that_reason(root: Path, outside: Path) -> None:
    with pytest.raises(ValueError, match=r"'M\\xfcnchen.csv' can't be .*: its name isn't UTF-8"):
        Folder(root).copy_in(outside / "secret", os.fsdecode(b"M\xfcnchen.csv"))
