from __future__ import annotations

from pathlib import Path

import pytest

from weir_chassis.errors import InvalidArgument
from weir_executor.folders import below

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("directory", ["..", ".", "", "../other", "a/../..", "/etc", "link", "a\0b"])
def test_directories_outside_the_folder_are_refused(tmp_path: Path, directory: str) -> None:
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(InvalidArgument, match="adapter folder"):
        below(tmp_path / "folder", directory, FILES, "adapter folder")


def test_a_file_that_links_out_of_the_folder_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "1").write_text("{}")
    (folder / "a").mkdir()
    (folder / "a" / "adapter_config.json").symlink_to(folder / "blobs" / "1")
    assert below(folder, "a", FILES, "adapter folder") == (folder / "a").resolve()
    assert below(folder, str(folder / "a"), FILES, "adapter folder") == (folder / "a").resolve()
    (folder / "a" / "adapter_model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgument, match=r"adapter_model\.safetensors is a link"):
        below(folder, "a", FILES, "adapter folder")
