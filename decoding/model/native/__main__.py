"""Build the kernels for all processors into the package, for an image or a machine without a compiler."""

import sys

from superdraft.decoding.model.native.library import BUNDLED, VARIANTS, KernelsUnavailableError, build


def main() -> None:
    """Build every variant; exit code 1 if one fails."""
    try:
        for variant in VARIANTS:
            sys.stderr.write(f"{build(variant, BUNDLED)}\n")
    except KernelsUnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
