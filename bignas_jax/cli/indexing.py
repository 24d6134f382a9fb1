"""Index tar shards of images, so that a run reads any image at once and its order depends on the seed alone.

    python -m bignas_jax index data/imagenet              # data/imagenet/train/*.tar and data/imagenet/val/*.tar
    python -m bignas_jax index data/imagenet/train        # one split
    python -m bignas_jax train --config.data.source=tar --config.data.root=data/imagenet

A shard holds key.jpg and its label in key.cls, or as "label" in key.json, as WebDataset lays them out. Names of classes
stand in classes.txt (one a line) or classes.json, beside the shards or one folder above.
"""

import argparse
import sys

from bignas_jax.cli import flags
from bignas_jax.text import shown


def main() -> int:
    program, *rest = flags.take_debug(sys.argv)
    parser = flags.Parser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="a folder of tar files, or of folders of tar files")
    arguments = parser.parse_args(rest)
    from bignas_jax.cli import scripts

    def work() -> None:
        from bignas_jax.data.tar_index import index_folder

        for found in index_folder(arguments.folder):
            classes = f"of {found.classes} classes" if found.classes else "with numbers for classes"
            print(f"{shown(str(found.path))}: {found.images:,} images {classes} in {found.shards} shards")
            most = found.passed_over.most_common(5)
            others = ", ".join(f"{count} {shown(suffix)}" for suffix, count in most if count)
            if others:
                print(f"passed over: {others}", file=sys.stderr)

    return scripts.run(program, work)
