"""Pre-train one frozen part of the tiny preset.

python -m studies.pretrain language|vision|imagebind [--seed N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.pretrain.loop import save_report
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config


def main(arguments: list[str] | None = None) -> None:
    """Train one part and write its weights and its report."""
    parser = argparse.ArgumentParser(prog="python -m studies.pretrain")
    parser.add_argument("part", choices=("language", "vision", "imagebind"), help="what to train")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=package_file("presets/tiny"),
        help="folder of the preset (default: the one in the package)",
    )
    options = parser.parse_args(arguments)
    settings = load_config(default_config_path()).model
    # Imported when needed: the parts need different libraries, and --help none of them.
    if options.part == "language":
        from studies.pretrain.language import train_language

        report = train_language(options.out / "llama", options.seed)
    elif options.part == "vision":
        from studies.pretrain.vision import train_vision

        report = train_vision(options.out, settings, options.seed)
    else:
        from studies.pretrain.imagebind import train_imagebind

        report = train_imagebind(options.out, settings, options.seed)
    save_report(options.out / "pretraining" / f"{options.part}.json", report)


if __name__ == "__main__":
    main()
