"""The chat page: `python demo_audiovideo.py --cfg-path eval_configs/X.yaml`; --help lists more."""

import sys

from video_llama.apps.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
