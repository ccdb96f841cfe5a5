"""Get STL-10 (Coates, Lee and Ng 2011): 113,000 images, 2.6 GB to download, 5.8 GB of space.

    python dataset/download_dataset.py
    python dataset/download_dataset.py --archive ~/Downloads/stl10_binary.tar.gz

Writes <data-dir>/stl10_binary/. An interrupted download resumes where it stopped, at once or when
this is run again; the archive is verified before it is unpacked, and removed afterward. If the
folder already holds images, this lists them and changes nothing.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from dataset.stl10 import STL10_IMAGES, load_stl10, stl10_folder
from dataset.stl10_archive import STL10, get_stl10
from src.runtime.cli import run_script


@dataclass(frozen=True)
class DownloadConfig:
    data_dir: Path = Path("dataset")
    """The directory in which stl10_binary/ appears."""
    url: str = STL10.url
    """Where to download from, for a mirror."""
    archive: Path | None = None
    """A copy of the archive on this machine, to unpack without a network."""
    md5: str | None = STL10.md5
    """The archive's checksum; None accepts any archive whose files have the right shapes."""


def main(config: DownloadConfig) -> None:
    folder = stl10_folder(config.data_dir)
    source = dataclasses.replace(STL10, url=config.url, md5=config.md5)
    get_stl10(config.data_dir, source, config.archive)
    splits = load_stl10(folder)
    counts = {name: len(images) for name, (images, _) in splits.items()}
    print(
        f"{folder} holds {', '.join(f'{count:,} {name}' for name, count in counts.items())} images"
    )
    if counts != STL10_IMAGES:
        print(
            "This is part of STL-10, ready to use. To get all of it, move this folder away first."
        )


if __name__ == "__main__":
    run_script(main, DownloadConfig)
