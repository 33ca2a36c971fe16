"""All of training, from the pictures to the embedded model: `python -m training`.

Every stage continues from its checkpoint in the work folder, so it can be stopped at any time.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from ras_dit.embedded import MODEL_DIR
from training import autoencoder, diffusion
from training.export import collect, export
from training.render import Art

PACKAGE: Final = "@lobehub/fluent-emoji-3d@1.1.0"


def get_art(work: Path) -> Path:
    """The folder of the pictures; fetched with npm where it is missing."""
    assets = work / "package" / "assets"
    if not assets.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is needed to fetch {PACKAGE}; or give --art FOLDER")
        subprocess.run([npm, "pack", PACKAGE], cwd=work, check=True)
        with tarfile.open(next(work.glob("lobehub-fluent-emoji-3d-*.tgz"))) as archive:
            archive.extractall(work, filter="data")
    return assets


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--art", type=Path, help="folder of the webp pictures; else from npm")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of checkpoints")
    parser.add_argument("--config", type=Path, default=diffusion.DEFAULT_CONFIG)
    parser.add_argument("--init-from", type=Path, help="an exported pipeline to continue from")
    parser.add_argument("--autoencoder-minutes", type=float, default=15.0, help="for each part")
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    art = Art(options.art or get_art(options.work))
    if not (options.work / "autoencoder.pt").exists() and options.init_from is None:
        for part in ("decoder", "encoder"):
            autoencoder.train(art, options.work, part, options.autoencoder_minutes, None)
    plan = diffusion.load_plan(options.config)
    diffusion.train(plan, art, options.work, options.init_from, threads=os.cpu_count() or 1)
    export(collect(options.work, options.init_from), options.out)


if __name__ == "__main__":
    main()
